"""A package for CUDA where there is no GPU: its twin computes what the portable package does, and what needs the GPU says so"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from click.testing import CliRunner

from export.package import finish
from export.twin import on_cpu
from graph_passes.pipelines import CUDA, PORTABLE
from graph_passes.step import run
from runtime.compare import snr_db
from runtime.errors import InputError, Unavailable
from runtime.inputs import example_inputs
from runtime.manifest import Package, sha256_of
from runtime.providers import provider
from runtime.session import Sessions, own_provider
from runtime.verify import main as verify

NEEDS = "the execution provider 'cuda' is not available here: it needs the package onnxruntime-gpu in place of onnxruntime"


@pytest.fixture(scope="module")
def made(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The embedded model's portable package, gone through the passes that a package for CUDA has beyond those."""
    folder = tmp_path_factory.mktemp("cuda") / "package"
    shutil.copytree(tiny_package, folder)
    manifest = Package.open(folder).manifest
    components = {}
    for name, entry in manifest.components.items():
        model = ir.load(folder / entry.file)
        run(model, CUDA[len(PORTABLE) :])
        ir.save(model, folder / entry.file)
        components[name] = replace(entry, sha256=sha256_of(folder / entry.file))
    finish(folder, replace(manifest, target="cuda", components=components))
    return Package.open(folder)


def snr(made: Package, other: Package, component: str) -> float:
    """Of a component's outputs in `made`, against those in `other`, on the CPU."""
    inputs = example_inputs(other, component, 64, 64)
    cpu = provider("cpu")
    with Sessions(other, cpu) as theirs, Sessions(made, cpu) as ours:
        expected, got = theirs.run(component, inputs), ours.run(component, inputs)
    return min(snr_db(expected[name], got[name]) for name in expected)


def test_the_twin_computes_what_the_portable_package_does(made: Package, tiny_package: Path) -> None:
    before = {path: path.read_bytes() for path in made.path.rglob("*.onnx")}
    with on_cpu(made) as twin:
        folder = twin.path
        for name in made.manifest.components:
            assert snr(twin, Package.open(tiny_package), name) > 110
    assert not folder.exists()
    assert {path: path.read_bytes() for path in made.path.rglob("*.onnx")} == before


def test_a_fault_in_the_graph_is_one_in_the_twin(made: Package, tiny_package: Path, tmp_path: Path) -> None:
    shutil.copytree(made.path, tmp_path / "package")
    file = tmp_path / "package" / made.manifest.components["vae_decoder"].file
    model = ir.load(file)
    node = next(each for each in model.graph if each.op_type == "GroupNorm")
    node.attributes["groups"] = ir.AttrInt64("groups", node.attributes["groups"].as_int() // 2)
    ir.save(model, file)
    with on_cpu(Package(tmp_path / "package", made.manifest)) as twin:
        assert snr(twin, Package.open(tiny_package), "vae_decoder") < 60


def test_other_packages_are_their_own_twin(tiny_package: Path) -> None:
    package = Package.open(tiny_package)
    with on_cpu(package) as twin:
        assert twin is package


def test_what_needs_the_gpu_says_so(made: Package) -> None:
    with pytest.raises(Unavailable, match=f"^{re.escape(NEEDS)}"):
        own_provider(made)
    sentence = ": the package is for cuda, and other providers lack some of its operators: give --ep cuda, or export it for cpu"
    with Sessions(made, provider("cpu")) as sessions, pytest.raises(InputError, match=re.escape(sentence)):
        sessions.load("vae_decoder")


def test_verify_checks_the_files_and_then_asks_for_the_gpu(made: Package) -> None:
    result = CliRunner().invoke(verify, [str(made.path)])
    assert result.exit_code == 3
    assert "every hash is right" in result.output
    assert NEEDS in result.output
