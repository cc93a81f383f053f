"""python -m export: what it refuses, in one sentence and before the work; and that OUT is whole or absent whatever happens."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import export.build
import export.package
from export import estimate
from export.__main__ import main
from export.component import Component
from export.families import sd
from export.package import staged
from export.weights import Checkpoint
from runtime.errors import InputError
from runtime.manifest import Package


@pytest.fixture(autouse=True)
def _signals_stay() -> Iterator[None]:
    """The command unwinds on SIGTERM; the tests' own process goes on as it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the package goes: the only thing in its folder."""
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages" / "out"


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be traced."""

    def begun(*_: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(export.build, "trace", begun)
    monkeypatch.setattr(export.build, "HERE", ("text_encoder", "unet", "vae_decoder", "vae_encoder"))  # where this patch is


@pytest.fixture
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the text encoder alone, which is traced in a second: everything around tracing is as it is."""
    components = sd.components

    def fewer(checkpoint: Checkpoint, size: tuple[int, int] | None, batch: int) -> list[tuple[str, Callable[[], Component]]]:
        return components(checkpoint, size, batch)[:1]

    monkeypatch.setattr(sd, "components", fewer)
    monkeypatch.setattr(export.build, "HERE", ("text_encoder",))  # in this process, where the tests' patches are


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, code: int, sentence: str, out: Path) -> None:
    """One sentence that begins so, the exit code, no traceback, and nothing left where the package would have been."""
    assert isinstance(result.exception, SystemExit), result.exc_info
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {sentence}"), last
    assert "Traceback" not in result.stderr
    assert result.exit_code == code
    assert list(out.parent.iterdir()) == []


# --- what is wrong with the call -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("model", "options", "sentence"), [
    ("tinny", (), "there is no model 'tinny': did you mean tiny"),
    ("sd51", (), "there is no model 'sd51': did you mean sd21 or sd15 or sd14?"),
    ("./nowhere", (), "there is no folder or file './nowhere'"),
    ("SMALL", ("--height", 100), "a height of 100 is not possible: it must be a positive multiple of 8"),
    ("SMALL", ("--width", -64), "a width of -64 is not possible: it must be a positive multiple of 8"),
    ("SMALL", ("--batch", -1), "a batch of -1 is not possible: give 1 or more"),
    ("SMALL", ("--batch", 0), "a batch of 0 is not possible: give 1 or more"),
    ("SMALL", ("--target", "toaster"), "There is no pipeline for the target 'toaster'. There is one for"),
    ("SMALL", ("--precision", "int4"), "The target 'portable' does not have the precision 'int4': it has fp32, fp16, w8, w4, a16w8."),
    ("SMALL", ("--lora", "style.safetensors:0.8"), "--lora is not there yet: this version exports a checkpoint as it is"),
    ("SMALL", ("--controlnet", "canny"), "--controlnet is not there yet: this version exports a checkpoint as it is"),
    ("SMALL", ("--weights", "random:abc"), "'random:abc' names no seed: write random or random:SEED"),
    ("svd", (), "'svd' is of the family 'svd', which this version cannot export yet: it exports tiny"),
])
def test_a_call_that_makes_no_sense(model: str, options: tuple[object, ...], sentence: str, small_folder: Path, out: Path) -> None:
    result = run(small_folder if model == "SMALL" else model, out, *options)
    refused(result, 2, sentence, out)
    assert len(result.stderr.splitlines()) == 1


def test_with_debug_the_traceback_is_shown(out: Path) -> None:
    assert isinstance(run("tinny", out, "--debug").exception, InputError)


def test_help_tells_what_there_is() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(option in result.stdout for option in ("--weights", "--check", "--force", "--allow-pickle", "--height"))


# --- what is wrong with the weights --------------------------------------------------------------------------------------------------


def truncated(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def another_width(folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"block_out_channels": [16, 16, 32, 64]}))


def not_finite(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["final_layer_norm.bias"][0] = float("nan")
    save_file(tensors, file)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("damage", "message"), [
    (truncated, "is truncated: "),
    (another_width, "it is of another architecture"),
    (lambda folder: shutil.rmtree(folder / "vae"), "is missing: the folder is no complete diffusers model"),
    (lambda folder: (folder / "model_index.json").unlink(), "is no diffusers model: it has no model_index.json"),
])
def test_weights_that_are_not_right(damage: Callable[[Path], None], message: str, small_folder: Path, tmp_path: Path, out: Path) -> None:
    model = Path(shutil.copytree(small_folder, tmp_path / "small"))
    damage(model)
    result = run(model, out, "--check", "none")
    refused(result, 2, "", out)
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.usefixtures("text_only")
def test_a_weight_that_is_not_finite(small_folder: Path, tmp_path: Path, out: Path) -> None:
    """It is looked for while the graph is traced."""
    model = Path(shutil.copytree(small_folder, tmp_path / "small"))
    not_finite(model)
    result = run(model, out, "--check", "none")
    refused(result, 2, "the tensor 'text_encoder/final_layer_norm.bias' of 'small' has NaN or infinite weights", out)


@pytest.mark.usefixtures("no_work")
def test_a_pickle_is_refused(out: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"\x80\x02")
    result = run(file, out)
    refused(result, 2, f"'{file}' is a pickle", out)
    assert "--allow-pickle" in result.stderr


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("model", ["sd14", "someone/something"])
def test_offline_the_ways_out_are_named(model: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = run(model, out)
    refused(result, 3, "'", out)
    assert "is not in the hub's cache of this machine and could not be fetched" in result.stderr
    assert "give a diffusers folder or a .safetensors file with --weights PATH, or take seeded random weights" in result.stderr


# --- what is wrong with the machine --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_work")
def test_too_little_disk_is_told_before_the_work(small_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    refused(run(small_folder, out), 2, f"the disk of '{out.parent}' has 0.0 GB free where this export needs 0.1 GB: free some space", out)


@pytest.mark.usefixtures("no_work")
def test_too_little_memory_is_told_before_the_work(small_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "available_memory", lambda: 3e8)
    result = run(small_folder, out)
    refused(result, 2, "0.3 GB of memory are free where this export needs ", out)
    assert "about" in result.stdout  # the estimate is printed first
    assert "GB of memory" in result.stdout


@pytest.mark.usefixtures("text_only")
def test_a_disk_that_fills_up_leaves_nothing(small_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: ir.Model, path: Path, **__: Any) -> None:
        path.write_bytes(b"half a graph")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(export.package.ir, "save", full)
    result = run(small_folder, out, "--check", "none")
    refused(result, 2, f"the disk of '{out.parent}' is full, and nothing was left there: free some space, or choose another disk", out)


# --- OUT is whole or absent ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("text_only")
def test_what_exists_is_replaced_on_request_only(small_folder: Path, out: Path) -> None:
    result = run(small_folder, out, "--check", "none")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"{out} is ready"
    assert "not checked" in result.stdout
    first = Package.open(out)
    assert first.manifest.pipeline["dynamic"] is True
    assert first.manifest.components["text_encoder"].parity is None

    result = run(small_folder, out, "--check", "none")
    assert result.exit_code == 2
    assert result.stderr == f"error: '{out}' exists: remove it, choose another folder, or give --force to replace it\n"
    assert Package.open(out).manifest == first.manifest

    result = run(small_folder, out, "--check", "none", "--force", "--height", 128)
    assert result.exit_code == 0, result.output
    pipeline = Package.open(out).manifest.pipeline
    assert (pipeline["dynamic"], pipeline["height"], pipeline["width"], pipeline["batch"]) == (False, 128, 64, 1)
    assert Package.open(out).manifest.components["text_encoder"].inputs[0].shape == (1, 77)
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.usefixtures("no_work")
def test_force_is_for_packages_only(small_folder: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    result = run(small_folder, out, "--force")
    assert result.exit_code == 2
    assert result.stderr == f"error: '{out}' exists and is no package of this project: it will not be replaced\n"
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.usefixtures("text_only")
def test_a_graph_that_differs_from_torch_fails_the_export(small_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever spoils a graph on its way: here its last layer norm is a tenth too large when it is written."""
    write = export.package.write_graph

    def spoiled(folder: Path, component: str, model: ir.Model, **options: bool) -> tuple[str, str]:
        value = next(value for name, value in model.graph.initializers.items() if name.endswith("final_layer_norm.weight"))
        assert value.const_value is not None
        value.const_value = ir.tensor(1.1 * value.const_value.numpy(), name=value.name)
        return write(folder, component, model, **options)

    monkeypatch.setattr(export.package, "write_graph", spoiled)
    result = run(small_folder, out, "--check", "quick")
    refused(result, 1, "'text_encoder' differs from torch: its 'last_hidden_state' has an SNR of 2", out)


def started(model: Path, out: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, at work: its staging folder is there."""
    process = subprocess.Popen([sys.executable, "-m", "export", str(model), str(out), "--check", "none"], stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True)
    while not (out.parent / f".{out.name}.{process.pid}.partial" / "work").is_dir():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def test_a_killed_export_leaves_nothing_at_out(small_folder: Path, out: Path) -> None:
    process = started(small_folder, out)
    process.kill()
    process.communicate()
    assert not out.exists()
    left = list(out.parent.iterdir())
    assert [path.name for path in left] == [f".out.{process.pid}.partial"]
    with staged(out) as staging:  # the next export tidies up
        (staging.package / "manifest.json").write_text("{}")
    assert list(out.parent.iterdir()) == [out]


def test_a_terminated_export_tidies_up(small_folder: Path, out: Path) -> None:
    process = started(small_folder, out)
    process.terminate()
    stderr = process.communicate()[1]
    assert process.returncode == 143
    assert "Traceback" not in stderr
    assert list(out.parent.iterdir()) == []
