"""The ablation's rows: what they hold, that weights are not copied, and that a row which computes something else has no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from export import ablation
from export.weights import open_checkpoint
from graph_passes.costs import table as costs_of
from graph_passes.passes.winograd import Policy
from graph_passes.step import Pass
from runtime.errors import CheckFailed, InputError
from runtime.manifest import ComponentEntry, Manifest, Package


def test_every_row_adds_an_optimization(tiny_package: Path, tmp_path: Path) -> None:
    package = Package.open(tiny_package)
    found: dict[str, set[str]] = {}
    for title, passes in ablation.rows(Policy(costs_of(), shapes={"latent_sample": (1, 4, 8, 8)})):
        folder = tmp_path / title.replace(" ", "-")
        folder.mkdir()
        made, ops = ablation._variant(package, "vae_decoder", passes, folder)
        assert list(made.manifest.components) == ["vae_decoder"]
        found[title] = set(ops)
    assert found["baseline"] == set()
    assert found["GroupNorm + GELU"] == {"GroupNorm", "GroupNormSilu"}
    assert found["partially fused softmax"] - found["GroupNorm + GELU"] == {"PartialSoftmaxAttention"}
    assert found["FlashAttention"] - found["GroupNorm + GELU"] == {"FlashAttention"}
    assert found["Winograd"] - found["FlashAttention"] >= {"WinogradConv", "WinogradConvAdd"}


def test_a_row_is_held_against_torch_before_its_time_counts(tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: object) -> int:
        for node in model.graph:  # type: ignore[attr-defined]
            if node.op_type == "Sigmoid":
                node.op_type = "Tanh"
        return 1

    monkeypatch.setattr(ablation, "COMPONENTS", ("vae_decoder",))
    monkeypatch.setattr(ablation, "rows", lambda policy: (("baseline", ()), ("tanh", (Pass("break", broken),))))
    checkpoint = open_checkpoint("tiny", None, tmp_path)
    with pytest.raises(CheckFailed, match=r"'vae_decoder' with tanh has .* dB against torch where 90 are asked for"):
        ablation.ablation(Package.open(tiny_package), checkpoint, 64, 64, 1, 1)


def test_a_row_is_compared_with_the_baseline_around_it(tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 40.0, 60.0, 30.0, 20.0])  # baseline, a row, the baseline again, a row, the baseline
    measured = ablation.start
    monkeypatch.setattr(ablation, "start", lambda job, folder: {**measured(job, folder), "median_ms": next(seconds)})
    monkeypatch.setattr(ablation, "COMPONENTS", ("vae_decoder",))
    nothing = Pass("nothing", lambda model: 0)
    monkeypatch.setattr(ablation, "rows", lambda policy: (("baseline", ()), ("a", (nothing,)), ("b", (nothing,))))
    rows = ablation.ablation(Package.open(tiny_package), open_checkpoint("tiny", None, tmp_path), 64, 64, 1, 1)
    assert [(row["baseline_ms"], row["reduction"]) for row in rows] == [(100.0, 0.0), (80.0, 0.5), (40.0, 0.25)]


def test_the_baseline_is_portable(tiny_package: Path, tmp_path: Path) -> None:
    package = Package.open(tiny_package)
    other = Package(package.path, replace(package.manifest, target="cpu"))
    with pytest.raises(InputError, match="is made for cpu: the baseline of an ablation is a portable package"):
        ablation.ablation(other, open_checkpoint("tiny", None, tmp_path), 64, 64, 1, 1)


def test_the_table_says_what_a_row_gains() -> None:
    row = {"row": "baseline", "component": "unet", "median_ms": 200.0, "baseline_ms": 200.0, "snr_db": 120.0, "peak_rss_mb": 50.0}
    text = ablation.table([{**row, "reduction": 0.0}, {**row, "row": "Winograd", "median_ms": 95.6, "reduction": 0.522}])
    assert text.splitlines()[2].split() == ["baseline", "200.0", "200.0", "0.0", "%", "120.0", "dB", "50"]
    assert text.splitlines()[3].split() == ["Winograd", "95.6", "200.0", "-52.2", "%", "120.0", "dB", "50"]


def test_weights_in_a_file_of_several_names_are_refused(tmp_path: Path) -> None:
    """As what was killed while it measured leaves them."""
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[2,3] x, float[3,4] w) => (float[2,4] y) { y = MatMul(x, w) }'
    model = ir.from_onnx_text(text)
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(np.ones((3, 4), np.float32), name="w")
    model.graph.register_initializer(weight)
    (tmp_path / "unet").mkdir()
    ir.save(model, tmp_path / "unet" / "model.onnx", external_data="model.onnx_data", size_threshold_bytes=1)
    (tmp_path / "left").hardlink_to(tmp_path / "unet" / "model.onnx_data")
    entry = ComponentEntry("unet/model.onnx", "", (), (), 20, data="unet/model.onnx_data")
    package = Package(tmp_path, Manifest("tiny", {}, "portable", "fp32", {}, {}, {"unet": entry}, {}, {}))
    sentence = r"model\.onnx_data has several hard links, and is not read\. Copy the file itself there\."
    with pytest.raises(InputError, match=sentence):
        ablation._variant(package, "unet", (), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["left", "unet"]
