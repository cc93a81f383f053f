"""Graphs compiled by QNN's compiler for a Snapdragon, run in its emulator, and what is said where that goes wrong"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import small_model
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL
from PIL import Image

from export.__main__ import main
from export.build import Built, Order
from export.component import Component
from export.context_binary import compile_graph, require_compiler, summary
from export.families.vae import VaeDecoder
from export.limits import FP16
from export.package import finish, hashed, write_component
from export.parity import check_component
from export.qnn import LIMITS, _compile_component, _require_whole, require_half
from export.reference import PROMPT, QUICK_STEPS, Oracle, Trajectory, Walk
from export.trace import trace
from graph_passes.pipelines import for_target
from graph_passes.step import run
from runtime import bench, verify
from runtime.errors import CheckFailed, InputError, Unavailable
from runtime.manifest import ComponentEntry, Manifest, Package, SizeEntry
from runtime.onnx_file import read
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image
from runtime.providers import provider
from runtime.session import Sessions
from runtime.snapdragon import soc

SM8550 = soc("sm8550")
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="module")
def snapdragon(once: Once) -> Package:
    """A small model for the SM8650, as the command makes it. Nobody may write to it."""

    def export(folder: Path) -> None:
        levels = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
        down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
        unet = small_model.unet(**levels, down_block_types=down, up_block_types=up)
        torch.manual_seed(1)
        down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
        vae = AutoencoderKL(**levels, sample_size=16, down_block_types=down, up_block_types=up).eval()
        model = small_model.save(folder / "model", {"text_encoder": small_model.text_encoder(), "unet": unet, "vae": vae})
        arguments = [str(model), str(folder / "package"), "--target", "qnn", "--soc", "sm8650", "--check", "quick"]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "compiled for sm8650 in" in result.output
        assert "dB in the emulator" in result.output

    return Package.open(once("package-snapdragon", export) / "package")


@pytest.fixture
def damaged(snapdragon: Package, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(snapdragon.path, tmp_path / "package"))


def write_sigmoid(file: Path, side: int) -> None:
    """A graph x [1, 4, side, side] -> its sigmoid."""
    ports = f"(float[1,4,{side},{side}] x) => (float[1,4,{side},{side}] y)"
    ir.save(ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g {ports} {{ y = Sigmoid(x) }}'), file)


def graph(tmp_path: Path, body: str) -> Path:
    """A graph x [1, 4, 8, 8] -> y of the same shape."""
    ports = "(float[1,4,8,8] x) => (float[1,4,8,8] y)"
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g {ports} {{ {body} }}')
    ir.save(model, tmp_path / "graph.onnx")
    (tmp_path / "out").mkdir()
    return tmp_path / "graph.onnx"


def test_every_component_is_one_context_that_the_emulator_holds_to_torch(snapdragon: Package) -> None:
    assert snapdragon.manifest.precision == "fp16"
    for name, entry in snapdragon.manifest.components.items():
        context, plan = entry.context, entry.plan
        assert context is not None, name
        assert plan is not None
        assert (context.soc, context.soc_model, context.htp_arch) == ("sm8650", 57, 75)
        assert context.compiler == {"onnxruntime-qnn": "2.7.0", "QNN": context.compiler["QNN"]}
        assert context.compiler["QNN"].startswith("v2.51.0")
        assert context.seconds > 0
        assert context.peak_mb > 50
        assert context.parity is not None
        assert context.parity["snr_db"] >= 40
        assert entry.parity is not None
        assert entry.parity["snr_db"] >= 90  # the graph before it was compiled
        assert (len(plan["partitions"]), plan["taken"], plan["faults"], plan["crossing_bytes"]) == (1, plan["nodes"], [], 0)


def test_the_package_holds_graphs_that_name_their_binaries_and_no_weights_but_the_hosts(snapdragon: Package) -> None:
    for name, entry in snapdragon.manifest.components.items():
        found = read(snapdragon.path / entry.file)
        assert found.operators == {("com.microsoft", "EPContext"): 1}
        assert (entry.data, found.external) == (f"{name}/model_qnn.bin", {"model_qnn.bin": 1})
        assert entry.context is not None
        assert (snapdragon.path / entry.data).stat().st_size == entry.context.bytes == snapdragon.manifest.files[entry.data].bytes
    assert sorted(path.name for path in (snapdragon.path / "unet").iterdir()) == ["config.json", "host.onnx", "model.onnx", "model_qnn.bin"]


def test_verify_takes_it_and_makes_a_picture(snapdragon: Package) -> None:
    result = CliRunner().invoke(verify.main, [str(snapdragon.path)])
    assert result.exit_code == 0, result.output
    assert "a picture of 16 x 16 in 2 steps: finite, and not flat" in result.output


def test_the_emulators_time_is_no_latency(snapdragon: Package, tmp_path: Path) -> None:
    result = CliRunner().invoke(bench.main, [str(snapdragon.path), "--ep", "qnn", "--json", str(tmp_path / "bench.json")])
    assert result.exit_code == 3
    assert "Compiled by QNN; nothing was measured:" in result.output
    assert re.search(r"unet +(\d+) of \1 nodes in 1 partition, \d\.\d MB for sm8650; the CPU computes time_proj first", result.output)
    sentence = ("error: the execution provider 'qnn' is an emulator here, whose time says nothing of a phone's: measure on a Snapdragon, "
                "with 'python -m android_bench' or this command there")
    assert sentence in result.output
    assert json.loads((tmp_path / "bench.json").read_text())["rows"] == []


def test_the_cpu_cannot_run_what_is_compiled(snapdragon: Package) -> None:
    sentence = "'vae_decoder' is compiled for the NPU of a Snapdragon (sm8650), and does not run on cpu: give --ep qnn"
    with Sessions(snapdragon, provider("cpu")) as sessions, pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        sessions.load("vae_decoder")


def test_a_picture_in_the_emulator_is_that_of_float32(snapdragon: Package) -> None:
    settings = Settings((PROMPT,), (0,), steps=QUICK_STEPS, guidance=snapdragon.manifest.pipeline["guidance"])
    with Sessions(snapdragon, provider("qnn")) as sessions:
        drawn = text_to_image(sessions, settings).images[-1]
    before = np.asarray(Image.open(snapdragon.path / "parity" / "onnx.png"))  # the same walk, taken by the graphs before they were compiled
    assert drawn.shape == before.shape
    assert np.ptp(drawn) > 50
    assert np.abs(drawn.astype(int) - before).max() <= FP16.picture


def test_each_size_has_a_binary_of_its_own(tmp_path: Path) -> None:
    sizes = {"model.onnx": 8, "model_16x16.onnx": 16}
    (tmp_path / "work").mkdir()
    (tmp_path / "unet").mkdir()
    for file, side in sizes.items():
        write_sigmoid(tmp_path / "unet" / file, side)
    entry = ComponentEntry("unet/model.onnx", "", (), (), 20, sizes=(SizeEntry(16, 16, 1, "unet/model_16x16.onnx", "", (), ()),))
    made = Package(tmp_path, Manifest("tiny", {}, "qnn", "fp16", {}, {}, {"unet": entry}, {}, {}))
    compiled = _compile_component(made, "unet", entry, SM8550, 1, tmp_path / "work")
    assert [graph.data for graph in compiled.graphs] == ["unet/model_qnn.bin", "unet/model_16x16_qnn.bin"]
    x = np.random.default_rng(0).normal(size=(1, 4, 16, 16)).astype(np.float32)
    options = ort.SessionOptions()
    provider("qnn").on_soc(SM8550.name).add_to(options)
    (got,) = ort.InferenceSession(tmp_path / compiled.sizes[0].file, options).run(None, {"x": x})
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-x.astype(np.float64))), atol=2e-3)
    assert sorted(path.name for path in (tmp_path / "unet").iterdir()) == sorted([*sizes, "model_16x16_qnn.bin", "model_qnn.bin"])


def test_a_binary_that_was_changed_on_disk(damaged: Path) -> None:
    binary = damaged / "vae_decoder" / "model_qnn.bin"
    data = bytearray(binary.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    binary.write_bytes(data)
    package = Package.open(damaged)
    with pytest.raises(CheckFailed, match=r"'vae_decoder/model_qnn\.bin' has other bytes than when it was made"):
        verify.check_files(damaged, package.manifest)
    sentence = (r"ONNX Runtime can't load 'vae_decoder' on qnn: .* \(it was compiled for sm8650: for another Snapdragon, export with that "
                r"one's --soc\)$")
    with Sessions(package, provider("qnn")) as sessions, pytest.raises(InputError, match=f"^{sentence}"):
        sessions.load("vae_decoder")


def test_a_binary_outside_the_package_is_refused(damaged: Path) -> None:
    file = damaged / "vae_decoder" / "model.onnx"
    model = ir.load(file)
    for node in model.graph:
        node.attributes["ep_cache_context"] = ir.AttrString("ep_cache_context", "../../other_qnn.bin")
    ir.save(model, file)
    sentence = "'vae_decoder' keeps weights in '../../other_qnn.bin' where the manifest says 'vae_decoder/model_qnn.bin': refused"
    package = Package(damaged, verify.read_manifest(damaged))
    with pytest.raises(CheckFailed, match=f"^{re.escape(sentence)}$"):
        verify.check_structure(package, "vae_decoder")


def test_results_below_the_limit_are_refused(snapdragon: Package) -> None:
    with Sessions(snapdragon, provider("qnn")) as sessions:
        inputs = {"latent_sample": np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)}
        right = sessions.run("vae_decoder", inputs)["sample"]
        noise = np.random.default_rng(1).standard_normal(right.shape) * right.std() * 10 ** (-39 / 20)
        with pytest.raises(CheckFailed, match=r"its 'sample' has an SNR of 39\.\d dB where 40 are asked for"):
            check_component(sessions, "vae_decoder", inputs, {"sample": (right + noise).astype(np.float32)}, LIMITS["fp16"])


@pytest.mark.parametrize(("by", "real", "loud"), [(2e3, 1.0, False), (2e3, 100.0, True), (1e6, 1.0, True)])
def test_a_decoder_that_leaves_float16_is_refused_before_it_is_compiled(by: float, real: float, loud: bool, tmp_path: Path) -> None:
    """On seeded latents, or, where only those of a trajectory are large enough, on these."""
    torch.manual_seed(0)
    options = {"sample_size": 8, "block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    decoder = VaeDecoder(small_model.loud(AutoencoderKL(**options, scaling_factor=0.5).eval(), by))
    latents = {"latent_sample": torch.randn(1, 4, 8, 8)}
    component = Component("vae_decoder", decoder, latents, ("sample",))
    model = trace(component, dynamic=False)
    steps = run(model, for_target("qnn", precision="fp16"))
    entry, files = write_component(tmp_path, component, model, steps, 0)
    finish(tmp_path, Manifest("small", {}, "qnn", "fp16", {}, {"scaling_factor": 0.5}, {"vae_decoder": entry}, {}, {}), files)
    inputs = {"latent_sample": latents["latent_sample"].numpy()}
    ended = Trajectory({}, "", [], [real * inputs["latent_sample"]], [], np.zeros((8, 8, 3), np.uint8))
    oracle = Oracle({"vae_decoder": (inputs, {})}, Walk(("",), 1, 1.0, 0, 8, 8), ended)
    if not loud:
        require_half(Package.open(tmp_path), oracle)
        return
    with pytest.raises(CheckFailed, match=r"'vae_decoder' reaches \d\S* in '.*', where float16 ends at 65,504, and a Snapdragon's NPU has "
                                          r"no float32: its pictures would be black. Give a checkpoint whose decoder was made for float16"):
        require_half(Package.open(tmp_path), oracle)


def test_a_graph_that_falls_apart(tmp_path: Path) -> None:
    compiled = compile_graph(graph(tmp_path, "a = Sigmoid(x) b = Erf(a) y = Tanh(b)"), tmp_path / "out" / "model.onnx", SM8550)
    assert (len(compiled.taken), compiled.left) == (2, {"Erf": 1})
    taken = sum(compiled.taken)
    sentence = (f"'unet' falls into 2 partitions on qnn, which takes {taken} of {taken + 1} nodes: QNN's compiler leaves above all 1 Erf "
                "to the CPU. Give --allow-partitions 2 to take it so")
    with pytest.raises(CheckFailed, match=f"^{re.escape(sentence)}$"):
        _require_whole("unet", compiled, 1)
    _require_whole("unet", compiled, 2)
    plan = summary(compiled.file, compiled)
    assert plan["map"] == [[1, compiled.taken[0]], [0, 1], [2, compiled.taken[1]]]
    assert plan["faults"] == [{"operator": "Erf", "nodes": 1, "why": "QNN's compiler leaves it to the CPU", "pass": ""}]
    assert plan["crossing_bytes"] == 2 * 4 * 4 * 8 * 8  # two float32 tensors of [1, 4, 8, 8]


def test_nothing_taken_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    compiled = compile_graph(graph(tmp_path, "y = Erf(x)"), tmp_path / "out" / "model.onnx", SM8550)
    with pytest.raises(CheckFailed, match=r"^'unet' falls into 0 partitions on qnn, which takes 0 of 1 nodes"):
        _require_whole("unet", compiled, 9)


def test_a_graph_that_the_compiler_refuses(tmp_path: Path) -> None:
    file = graph(tmp_path, "y = NoSuchOperator(x)")
    with pytest.raises(CheckFailed, match=r"^QNN's compiler refuses 'graph\.onnx' for sm8550: .*NoSuchOperator"):
        compile_graph(file, tmp_path / "out" / "model.onnx", SM8550)


@pytest.mark.parametrize(
    ("compiler", "code", "sentence"),
    [
        ("exit 1", 1, "QNN's compiler refuses 'model.onnx' for sm8550: exit code 1"),
        ("echo some noise >&2; echo no such op >&2; exit 134", 1, "QNN's compiler refuses 'model.onnx' for sm8550: no such op"),
        ("kill -9 $$", 2, "QNN's compiler was killed by signal 9 at 'model.onnx': is there enough memory?"),
        ("""echo '{"error": "QNN error 6020"}' > "$6"; echo noise >&2""", 1,
         "QNN's compiler refuses 'model.onnx' for sm8550: QNN error 6020"),
        ("""touch "$4"; echo '{"taken": [3], "left": {"Erf": 1}, "seconds": 1, "peak_mb": 1}' > "$6\"""", 1,
         "'unet' falls into 1 partition on qnn, which takes 3 of 4 nodes: QNN's compiler leaves above all 1 Erf to the CPU. "
         "Give --allow-partitions 2 to take it so"),
    ],
    ids=["dies", "dies with a word", "killed", "refuses", "leaves a node"],
)  # fmt: skip
def test_a_compiler_that_fails_leaves_no_package(
    compiler: str, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the place of the compiler's process a shell: $4 is the graph to write, $6 the result."""

    def build(order: Order, *_: object) -> dict[str, Built]:
        file = order.folder / "unet" / "model.onnx"
        file.parent.mkdir()
        write_sigmoid(file, 8)
        return {"unet": Built(ComponentEntry("unet/model.onnx", hashed(file).sha256, (), (), 20), {"unet/model.onnx": hashed(file)})}

    program = tmp_path / "compiler"
    program.write_text(f"#!/bin/sh\n{compiler}\n")
    program.chmod(0o755)
    monkeypatch.setattr("export.context_binary.sys.executable", str(program))
    monkeypatch.setattr("export.run.build", build)
    result = CliRunner().invoke(main, ["tiny", str(tmp_path / "out"), "--target", "qnn", "--check", "none"])
    assert result.exit_code == code, result.output
    assert f"error: {sentence}\n" in result.stderr
    assert list(tmp_path.iterdir()) == [program]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--target", "qnn", "--soc", "sm9"], "'sm9' is no Snapdragon whose NPU computes in float16: there are sm8450, "),
        (["--soc", "sm8550"], "--soc names what the target qnn compiles for, and the target is portable: leave it out"),
        (["--target", "qnn", "--precision", "fp32"], "The target 'qnn' does not have the precision 'fp32': it has fp16"),
        (["--target", "qnn", "--dynamic"], "the target qnn takes static shapes only"),
    ],
)
def test_wrong_calls(options: list[str], sentence: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["tiny", str(tmp_path / "out"), *options])
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert list(tmp_path.iterdir()) == []


def test_without_the_compiler_nothing_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    result = CliRunner().invoke(main, ["tiny", str(tmp_path / "out"), "--target", "qnn"])
    assert result.exit_code == 3
    assert re.fullmatch(r"error: --target qnn compiles on this machine, and QNN's compiler is not available here \(.*\): "
                        r"pip install onnxruntime-qnn, or 'handheld-diffusion\[qnn\]'", result.output.strip())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Unavailable):
        require_compiler()
