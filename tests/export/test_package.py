"""The package folder: whole or absent, its graphs valid, every file of it hashed, and nothing in it that belongs to this machine."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image

from export import exchange, package
from export.component import Component
from export.families import sd
from export.package import copy_files, finish, staged, write_component, write_graph, write_index, write_pictures
from graph_passes.step import Step
from runtime.errors import CheckFailed, InputError
from runtime.manifest import ComponentEntry, FileEntry, Manifest, Package, Port, files_below, sha256_of

ROOT = Path(__file__).resolve().parents[2]


def a_package(folder: Path, text: str = "old") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(text)
    return folder


def build(out: Path, force: bool = False, before_the_end: Callable[[], object] = list) -> None:
    with staged(out, force) as staging:
        a_package(staging.package, "new")
        before_the_end()


def failing(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


# --- whole or absent -----------------------------------------------------------------------------------------------------------------


def test_a_package_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "out"
    with staged(out) as staging:
        a_package(staging.package, "new")
        (staging.work / "scratch").write_text("x")
        assert not out.exists()
        assert staging.package.parent.parent == out.parent  # on the same disk, so that the last step is a rename
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_appears_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        build(tmp_path / "out", before_the_end=failing(error()))
    assert list(tmp_path.iterdir()) == []


def test_a_package_in_the_way_is_not_touched(tmp_path: Path) -> None:
    out = a_package(tmp_path / "out")
    with pytest.raises(InputError, match=r"'.*/out' exists: remove it, choose another folder, or give --force to replace it"):
        build(out)
    assert (out / "manifest.json").read_text() == "old"


def test_force_replaces_a_package_when_the_new_one_is_whole(tmp_path: Path) -> None:
    out = a_package(tmp_path / "out")
    with pytest.raises(ValueError, match="broken"):
        build(out, force=True, before_the_end=failing(ValueError("broken")))
    assert (out / "manifest.json").read_text() == "old"
    build(out, force=True)
    assert (out / "manifest.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_force_leaves_no_moment_without_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of the file system, where it has one: here every other way to move a folder fails."""
    out = a_package(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda *_: failing(AssertionError("moved in two steps"))())
        build(out, force=True)
    assert (out / "manifest.json").read_text() == "new"


def test_force_where_the_file_system_knows_no_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old package is moved aside; it comes back when the new one cannot take its place."""
    out, rename = a_package(tmp_path / "out"), Path.rename
    full = failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    monkeypatch.setattr(exchange, "_at_once", lambda *_: False)
    monkeypatch.setattr(Path, "rename", lambda path, to: full() if path.name == "package" else rename(path, to))
    with pytest.raises(InputError, match="is full, and nothing was left there"):
        build(out, force=True)
    assert (out / "manifest.json").read_text() == "old"
    monkeypatch.setattr(Path, "rename", rename)
    build(out, force=True)
    assert (out / "manifest.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_force_replaces_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    build(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "manifest.json").read_text() == "new"


def test_force_replaces_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "letter").write_text("dear")
    for name in ("thesis", "letter"):
        with pytest.raises(InputError, match="exists and is no package of this project: it will not be replaced"):
            build(tmp_path / name, force=True)
    assert {path.name for path in tmp_path.rglob("*")} == {"thesis", "chapter.txt", "letter"}


def test_an_export_that_was_faster_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists: remove it, choose another folder, or give --force"):
        build(tmp_path / "out", before_the_end=lambda: a_package(tmp_path / "out", "theirs"))
    assert (tmp_path / "out" / "manifest.json").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    """By the number of its process, where that is gone; or is ours, as it often is in containers. What still runs is left alone."""
    killed = subprocess.Popen(["true"])
    killed.wait()
    left = {number: tmp_path / f".out[1].{number}.partial" for number in (killed.pid, os.getpid(), os.getppid())}
    other = tmp_path / f".out.{killed.pid}.partial"
    for path in (*left.values(), other):
        (path / "package").mkdir(parents=True)
    build(tmp_path / "out[1]")
    assert sorted(tmp_path.iterdir()) == sorted([left[os.getppid()], other, tmp_path / "out[1]"])


@pytest.mark.parametrize(("code", "message"), [
    (errno.ENOSPC, r"the disk of '.*' is full, and nothing was left there: free some space, or choose another disk"),
    (errno.EACCES, r"'.*' cannot be used: Permission denied"),
    (errno.EROFS, r"'.*' cannot be used: Read-only file system"),
])
def test_a_disk_that_refuses_is_told_in_a_sentence(tmp_path: Path, code: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path / "out", before_the_end=failing(OSError(code, os.strerror(code))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["out", "deeper/out"])
def test_a_file_is_no_folder_for_packages(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is no folder and cannot become one: choose another place for the package"):
        build(tmp_path / "file" / below)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- graphs --------------------------------------------------------------------------------------------------------------------------


def product(weight: np.ndarray, kind: str = "MatMul") -> ir.Model:
    """x [1, n] times a weight."""
    float32 = onnx.TensorProto.FLOAT
    x, y = (onnx.helper.make_tensor_value_info(name, float32, [1, size]) for name, size in zip("xy", weight.shape, strict=True))
    node = onnx.helper.make_node(kind, ["x", "weight"], ["y"])
    graph = onnx.helper.make_graph([node], "product", [x], [y], [onnx.numpy_helper.from_array(weight, "weight")])
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10))


@pytest.mark.parametrize(("limit", "data"), [(0, "product/model.onnx_data"), (1 << 20, "")])
def test_many_weights_have_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, data: str) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((64, 32), np.float32), rng.standard_normal((1, 64), np.float32)
    monkeypatch.setattr(package, "EXTERNAL_BYTES", limit)
    made, moved = tmp_path / "made", tmp_path / "moved"
    made.mkdir()
    assert write_graph(made, "product", product(weight)) == ("product/model.onnx", data)
    made.rename(moved)  # a package may be carried anywhere
    files = sorted(path.name for path in (moved / "product").iterdir())
    assert files == (["model.onnx", "model.onnx_data"] if data else ["model.onnx"])
    if data:
        stored = onnx.load(moved / "product" / "model.onnx", load_external_data=False).graph.initializer[0]
        assert {entry.key: entry.value for entry in stored.external_data}["location"] == "model.onnx_data"
        assert (moved / "product" / "model.onnx_data").stat().st_size >= weight.nbytes
    session = onnxruntime.InferenceSession(moved / "product" / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, atol=1e-5)


def test_a_graph_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="'product' is not a valid ONNX graph: "):
        write_graph(tmp_path, "product", product(np.ones((4, 4), np.float32), kind="NoSuchOperator"))


def test_a_component_is_described_as_it_is(tmp_path: Path) -> None:
    """Ports, counts and hashes of the entry are those of the graph that was written."""
    module = torch.nn.Linear(4, 6)
    component = Component("product", module, {"x": torch.zeros(1, 4)}, ("y",), config={"width": 6})
    steps = [Step("clean", 1, 0.5), Step("merge", 3, 0.25, ("why not",), ("what instead",))]
    entry, files = write_component(tmp_path, component, product(np.ones((4, 6), np.float32)), steps, 24)
    assert entry == ComponentEntry("product/model.onnx", sha256_of(tmp_path / "product" / "model.onnx"), (Port("x", "float32", (1, 4)),),
                                   (Port("y", "float32", (1, 6)),), 20, parameters=30, macs=24, weight_bytes=96,
                                   passes=({"name": "clean", "applied": 1, "seconds": 0.5},
                                           {"name": "merge", "applied": 3, "seconds": 0.25, "notes": ["what instead"],
                                            "refused": ["why not"]}))
    assert set(files) == {"product/model.onnx", "product/config.json"}
    assert all(file == FileEntry(sha256_of(tmp_path / name), (tmp_path / name).stat().st_size) for name, file in files.items())
    assert json.loads((tmp_path / "product" / "config.json").read_text()) == {"width": 6}


# --- the manifest --------------------------------------------------------------------------------------------------------------------


def a_manifest() -> Manifest:
    ports = (Port("x", "float32", (1, 4)),)
    return Manifest("tiny", {}, "portable", "fp32", {}, {}, {"unet": ComponentEntry("unet/model.onnx", "", ports, ports, 20)}, {}, {})


def test_every_file_is_hashed_and_no_other(tmp_path: Path) -> None:
    source = tmp_path / "vocabulary"
    source.write_text("{}")
    folder = tmp_path / "package"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.onnx").write_bytes(b"graph")
    copy_files(folder, {"tokenizer/vocab.json": source})
    made = finish(folder, a_manifest())
    assert set(made.files) == {"unet/model.onnx", "tokenizer/vocab.json"}
    for name, entry in made.files.items():
        assert (entry.sha256, entry.bytes) == (sha256_of(folder / name), (folder / name).stat().st_size)
    assert Package.open(folder).manifest == made

    (folder / "parity.png").write_bytes(b"picture")
    again = finish(folder, made, made.files)
    assert set(again.files) == {*made.files, "parity.png"}
    assert again.files["parity.png"].sha256 == sha256_of(folder / "parity.png")


CONFIGS = {"unet": {"in_channels": 4}, "vae": {"latent_channels": 4}}


@pytest.mark.parametrize(("configs", "pipeline", "checked"), [
    (CONFIGS, "StableDiffusionPipeline", False),
    ({**CONFIGS, "safety_checker": {}}, "StableDiffusionPipeline", True),
    ({**CONFIGS, "unet": {"in_channels": 9}}, "StableDiffusionInpaintPipeline", False),
    ({**CONFIGS, "unet": {"in_channels": 4, "time_cond_proj_dim": 256}}, "LatentConsistencyModelPipeline", False),
])
def test_the_index_is_one_that_diffusers_reads(tmp_path: Path, configs: dict, pipeline: str, checked: bool) -> None:
    write_index(tmp_path, sd.index(SimpleNamespace(configs=configs)), {"_class_name": "PNDMScheduler", "beta_start": 0.001})
    index = getattr(diffusers, pipeline).load_config(tmp_path)
    assert index["_class_name"] == pipeline
    assert index["requires_safety_checker"] is checked
    assert (index["safety_checker"][0] is not None) is checked
    assert (index["feature_extractor"][0] is not None) is checked
    assert diffusers.PNDMScheduler.from_pretrained(tmp_path, subfolder="scheduler").config.beta_start == 0.001


def test_pictures_are_kept_as_they_are(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(seed).integers(0, 256, (8, 16, 3), np.uint8) for seed in (0, 1)]
    write_pictures(tmp_path, *pictures)
    for name, picture in zip(("torch", "onnx"), pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "parity" / f"{name}.png")), picture)


# --- a real package ------------------------------------------------------------------------------------------------------------------


def test_the_embedded_models_package_is_complete(tiny_package: Path, tiny_checkpoint: Path) -> None:
    manifest = Package.open(tiny_package).manifest
    assert sorted(manifest.files) == list(files_below(tiny_package))
    assert all(entry.sha256 == sha256_of(tiny_package / name) for name, entry in manifest.files.items())
    for name, component in manifest.components.items():
        assert component.sha256 == manifest.files[f"{name}/model.onnx"].sha256
        source = name.replace("vae_encoder", "vae").replace("vae_decoder", "vae")
        stored = json.loads((tiny_checkpoint / source / "config.json").read_text())
        assert json.loads((tiny_package / name / "config.json").read_text()) == stored
        assert component.macs > component.parameters > 0
        assert all(set(each) == {"name", "applied", "seconds"} for each in component.passes)
    assert manifest.source["kind"] == "folder"
    stored = manifest.source["sha256"]
    assert stored["unet/diffusion_pytorch_model.safetensors"] == sha256_of(tiny_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    assert {"torch", "onnx", "onnxruntime", "handheld-diffusion"} <= set(manifest.tools)
    assert (tiny_package / "tokenizer" / "vocab.json").read_bytes() == (tiny_checkpoint / "tokenizer" / "vocab.json").read_bytes()


def test_no_path_of_this_machine_is_in_a_package(tiny_package: Path, tiny_checkpoint: Path) -> None:
    paths = {ROOT, tiny_checkpoint, tiny_package.parent, Path.home(), Path(sys.prefix), Path(diffusers.__file__).parents[1]}
    words = {str(path).encode() for path in paths if len(path.parts) > 1}
    assert len(words) > 2
    for name in (*files_below(tiny_package), "manifest.json"):
        content = (tiny_package / name).read_bytes()
        assert not [word for word in words if word in content], name
