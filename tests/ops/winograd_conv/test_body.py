"""The transformed weights, and the bodies of WinogradConv, WinogradConvAdd and WinogradConvSilu against float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from graph_passes.ops.winograd_conv import TILES, pack, packed_shape, weight_transform

from ..harness import OPSETS, UNIT, inferred, session
from .reference import OPS, SHAPES, TYPES, hold, model_of, operands


@pytest.mark.parametrize("dtype", TYPES.values())
@pytest.mark.parametrize("tile", TILES)
def test_packed_weights_are_g_w_g_transposed_in_the_order_of_the_kernel(tile: int, dtype: ir.DataType) -> None:
    weights = np.random.default_rng(0).normal(size=(11, 5, 3, 3)).astype(np.float32)
    u, transform = pack(weights, tile, dtype), weight_transform(tile)
    pair = 1 if dtype == ir.DataType.FLOAT else 2
    assert u.dtype == dtype.numpy()
    assert u.shape == packed_shape(11, 5, tile, dtype) == ((2, (tile + 2) ** 2, 5, 8), (2, (tile + 2) ** 2, 3, 8, 2))[pair - 1]
    u = u.reshape(2, (tile + 2) ** 2, -1, 8, pair)
    for channel_out in range(16):
        for channel_in in range(6 if pair == 2 else 5):
            got = u[channel_out // 8, :, channel_in // pair, channel_out % 8, channel_in % pair].reshape(tile + 2, tile + 2)
            inside = channel_out < 11 and channel_in < 5
            exact = transform @ weights[channel_out, channel_in].astype(np.float64) @ transform.T if inside else np.zeros((tile + 2,) * 2)
            np.testing.assert_array_equal(got, exact.astype(np.float32).astype(u.dtype) if pair == 1 else exact.astype(u.dtype))


@pytest.mark.parametrize("tile", TILES)
def test_the_transform_multiplies_polynomials(tile: int) -> None:
    """Cook and Toom: the product of a filter of 3 and a signal of `tile` taps is what their values at the points say."""
    points = tile + 1
    filter_, signal = np.array([1.5, -2.0, 0.25]), np.arange(1.0, tile + 1)
    values = (weight_transform(tile) @ filter_)[:points]
    where = {2: [0, 1, -1], 4: [0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)], 6: [0, 0.5, -0.5, 1, -1, 2, -2]}[tile]
    for index, point in enumerate(where):
        scale = np.prod([point - other for other in where if other != point])
        np.testing.assert_allclose(values[index] * scale, np.polyval(filter_[::-1], point), rtol=1e-14, atol=1e-14)
    assert np.polymul(filter_[::-1], signal[::-1]).size == tile + 2  # as many values as points, infinity included


@pytest.mark.parametrize(("shape", "channels_out"), SHAPES[:4])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_the_convolution(op_type: str, tile: int, shape: tuple[int, ...], channels_out: int) -> None:
    weights, feeds = operands(op_type, shape, channels_out)
    model = model_of(op_type, shape, weights, tile)
    # the weights come back rounded by the transform's condition, a few units in the last place
    for got in (ReferenceEvaluator(model).run(None, feeds)[0], session(model, None).run(None, feeds)[0]):
        hold(got, op_type, weights, feeds, 8 * UNIT)
    if shape[1] % 2 == 0:
        half = model_of(op_type, shape, weights, tile, ir.DataType.BFLOAT16)
        hold(session(half, None).run(None, feeds)[0], op_type, weights, feeds, 2.0**-8)


@pytest.mark.parametrize("opset", OPSETS)
def test_the_bodies_are_valid_at_every_opset_and_infer_shapes(opset: int) -> None:
    for op_type in OPS:
        weights, feeds = operands(op_type, (2, 6, 5, 7), 9)
        model = model_of(op_type, ("N", 6, "H", "W"), weights, 4, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        hold(session(model, None).run(None, feeds)[0], op_type, weights, feeds, 8 * UNIT)
        assert inferred(model)[:2] == ["N", 9]


def test_without_the_library_a_plain_convolution_is_left(tmp_path: Path) -> None:
    """What the body does to the weights is done once, when the session is made."""
    weights, feeds = operands("WinogradConv", (1, 6, 5, 7), 9)
    proto = model_of("WinogradConv", ("N", 6, "H", "W"), weights, 4)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(feeds["bias"], "bias"))
    del proto.graph.input[1]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["Conv"]
