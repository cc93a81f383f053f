"""What a machine's convolutions cost: the models of one operator, and the table that graph_passes reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from graph_passes.costs import Algorithm, Layer
from graph_passes.costs import table as costs
from graph_passes.ops.winograd_conv import TILES, packed_shape
from runtime import bench, calibrate
from runtime.errors import Unavailable
from runtime.one_op import one_op


def test_a_model_of_one_operator_is_one_that_others_read() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(200, 2, 3, 3)).astype(np.float32), rng.normal(size=200).astype(np.float32)
    written = one_op("Conv", "", {"x": (1, 2, 300, 5)}, {"w": w, "b": b}, (1, 200, 300, 5), {"pads": [1, 1, 1, 1], "group": 1})
    onnx.checker.check_model(written, full_check=True)
    model = onnx.load_from_string(written)
    assert [(value.name, [size.dim_value for size in value.type.tensor_type.shape.dim]) for value in model.graph.input] == [
        ("x", [1, 2, 300, 5])
    ]
    for tensor, array in zip(model.graph.initializer, (w, b), strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), array)
    x = rng.normal(size=(1, 2, 300, 5)).astype(np.float32)
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(onnxruntime.InferenceSession(written).run(None, {"x": x})[0], expected, atol=1e-4)


def test_a_custom_operator_has_its_domain_and_half_weights_their_type() -> None:
    model = onnx.load_from_string(one_op("Op", "handheld", {"x": (1,)}, {"u": np.array([0x3F80, 0x4000], np.uint16)}, (1,), {"tile": 300}))
    assert {each.domain: each.version for each in model.opset_import} == {"": 20, "handheld": 1}
    assert (model.graph.node[0].domain, model.graph.node[0].attribute[0].i) == ("handheld", 300)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32), [1, 2])


@pytest.mark.parametrize("tile", TILES)
def test_the_measured_weights_have_the_shape_of_real_ones(tile: int) -> None:
    for precision, dtype in (("fp32", onnx.TensorProto.FLOAT), ("bf16", onnx.TensorProto.BFLOAT16)):
        model, feeds = calibrate._trial(tile, precision, 6, 20, 4)
        port = onnx.load_from_string(model).graph.input[1].type.tensor_type
        assert tuple(size.dim_value for size in port.shape.dim) == packed_shape(20, 6, tile, onnx_type(dtype)) == tuple(feeds["u"].shape())
        assert port.elem_type == feeds["u"].element_type() == dtype


def onnx_type(dtype: int) -> object:
    import onnx_ir

    return onnx_ir.DataType(dtype)


def test_a_calibration_becomes_the_costs_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's file, with measurements that are made up: faster in the second round."""
    asked: list[tuple[int, str, int, int, int]] = []

    def made_up(tile: int, precision: str, channels_in: int, channels_out: int, side: int, library: Path, threads: int) -> float:
        asked.append((tile, precision, channels_in, channels_out, side))
        return 10.0 - tile if asked.count(asked[-1]) == 2 else 100.0

    monkeypatch.setattr(calibrate, "measure", made_up)
    monkeypatch.setattr(calibrate, "LAYERS", ((4, 8, 16), (3, 8, 16)))
    monkeypatch.setattr(calibrate, "custom_ops_library", lambda: Path("library.so"))
    monkeypatch.setattr(calibrate.calibrate, "__defaults__", (calibrate.LAYERS, lambda: None))
    file = tmp_path / "mine.json"
    result = CliRunner().invoke(bench.main, ["--calibrate", "--threads", "2", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "4 -> 8 at 16x16" in result.output
    found = costs(str(file))
    assert found.threads == 2
    assert found.milliseconds(Algorithm(4, "bf16"), Layer(4, 8, 16, 16)) == 6.0
    assert found.milliseconds(Algorithm(0, "fp32"), Layer(3, 8, 16, 16)) == 10.0
    assert ("bf16", 3) not in {(row["precision"], row["channels_in"]) for row in json.loads(file.read_text())["rows"]}


def test_a_machine_is_measured_and_no_package() -> None:
    result = CliRunner().invoke(bench.main, ["--calibrate", "somewhere"])
    assert result.exit_code == 2
    assert "--calibrate measures the machine and no package: leave out 'somewhere'" in result.output


def test_without_kernels_there_is_nothing_to_weigh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "custom_ops_library", lambda: None)
    with pytest.raises(Unavailable, match="the kernels are not built, and without them there is nothing to weigh: run 'make kernels'"):
        calibrate.calibrate(1)


def test_a_layer_is_really_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's own convolution, which needs no library but is given one that is none."""
    monkeypatch.setattr(onnxruntime.SessionOptions, "register_custom_ops_library", lambda self, path: None)
    assert calibrate.measure(0, "fp32", 4, 8, 8, Path("library.so"), 1) > 0
