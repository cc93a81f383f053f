"""Activations of 16 bits with weights of 8: what each number in the graph says, and that the whole computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import feed, ops, run_in_double, run_in_runtime, weight, with_weights
from test_half import measured, snr

from graph_passes.contrib.expand import expand
from graph_passes.errors import GraphError
from graph_passes.passes.half import Ranges
from graph_passes.passes.host import split_host
from graph_passes.passes.names import NAME_NODES
from graph_passes.passes.quantize_static import REACH, quantize_static
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.precision import lowered
from graph_passes.step import run

NETWORK = """
    c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    n = InstanceNormalization(c, gain, offset)
    s = Sigmoid(n)
    m = Mul(n, s)
    f = Reshape(m, sizes)
    g = Gemm<transB = 1>(f, v, d)
    p = MatMul(g, u)
    y = Add(p, e)
"""


def network() -> ir.Model:
    return with_weights(
        NETWORK, "float[1,4,4,4] x", w=weight(8, 4, 3, 3), b=weight(8, seed=1), gain=1 + weight(8, scale=0.1, seed=2),
        offset=weight(8, seed=3), sizes=np.array([4, 32]), v=weight(16, 32, seed=4), d=weight(16, seed=5), u=weight(16, 12, seed=6),
        e=weight(12, seed=7))


def quantized(model: ir.Model, measure: object = measured) -> None:
    run(model, (quantize_static(measure), REMOVE_UNUSED, NAME_NODES))  # type: ignore[arg-type]
    onnx.checker.check_model(ir.to_proto(model))


def test_the_whole_computes_what_it_did() -> None:
    model = network()
    feeds = feed(model)
    expected = run_in_double(model, feeds)[0]
    quantized(model)
    got = run_in_runtime(model, feeds)[0]
    # weights of 8 bits in three layers and a norm cost 40 to 45 dB each, and their errors add up in power
    assert snr(expected, got) > 34.0
    assert ops(model)["QuantizeLinear"] == 9  # x and eight results
    types = {value.dtype for value in model.graph.initializers.values()}
    assert types == {ir.DataType.UINT16, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.FLOAT, ir.DataType.INT64}
    standard = model.clone()
    assert expand(standard) == 9 * 2 + 1  # and the constant that is added
    np.testing.assert_allclose(run_in_runtime(standard, feeds)[0], got, rtol=1e-5, atol=1e-5)


def test_an_activation_is_off_by_half_a_step_and_reaches_twice_as_far_as_was_measured_to_either_side() -> None:
    model = with_weights("y = Identity(x)", "float[1000] x")
    quantized(model, lambda _: {"x": (-1.0, 3.0), "y": (-1.0, 3.0)})
    limit = 3.0 * REACH
    step = 2 * limit / 65535
    x = np.linspace(-limit, limit, 1000)
    got = run_in_runtime(model, {"x": x})[0]
    assert np.abs(got - x).max() <= step / 2 * 1.01
    assert run_in_runtime(model, {"x": np.full(1000, 50.0)})[0][0] == pytest.approx(limit, abs=step)
    assert run_in_runtime(model, {"x": np.zeros(1000)})[0][0] == 0.0  # zero is a code: padding is exact
    scales = {float(node.inputs[1].const_value.numpy()) for node in model.graph if node.op_type == "QuantizeLinear"}
    assert len(scales) == 1  # a view has the scale of what it shows


@pytest.mark.parametrize(("operator", "scale", "zero"), [
    ("Sigmoid", 2.0**-16, 0), ("Softmax", 2.0**-16, 0), ("Tanh", 2.0**-15, 32768), ("Relu", REACH / 65535, 0),
])
def test_what_is_never_negative_has_all_codes_above_zero_and_known_ends_are_not_measured(operator: str, scale: float, zero: int) -> None:
    model = with_weights(f"y = {operator}(x)", "float[3] x")
    quantized(model, lambda _: {"x": (-1.0, 1.0), "y": (0.0, 1.0)})
    last = next(node for node in reversed(model.graph) if node.op_type == "QuantizeLinear")
    assert [value.const_value.numpy() for value in last.inputs[1:]] == [np.float32(scale), zero]


@pytest.mark.parametrize(("for_htp", "scales"), [(False, (12,)), (True, ())])
def test_a_product_has_a_scale_to_each_channel_but_for_htp(for_htp: bool, scales: tuple[int, ...]) -> None:
    columns = np.geomspace(1, 0.03, 12, dtype=np.float32)  # of very different sizes: one scale to all loses the small ones
    model = with_weights("y = MatMul(x, w)", "float[5,16] x", w=weight(16, 12) * columns)
    feeds = feed(model)
    expected = run_in_double(model, feeds)[0]
    run(model, (quantize_static(measured, for_htp),))
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert product.inputs[1].producer().inputs[1].const_value.numpy().shape == scales
    got = run_in_runtime(model, feeds)[0]
    worst = min(snr(expected[:, column], got[:, column]) for column in range(12))
    assert (worst > 30.0) != for_htp


def test_linear_layers_for_htp_have_a_scale_to_each_channel_as_products_of_two_matrices() -> None:
    columns = np.geomspace(1, 0.03, 12, dtype=np.float32)
    model = with_weights("p = MatMul(x, w) y = Add(p, b)", "float[2,5,16] x", w=weight(16, 12) * columns, b=weight(12, seed=1) * columns)
    feeds = feed(model)
    expected = run_in_double(model, feeds)[0]
    run(model, lowered("a16w8", "qnn", measured))
    assert {name: count for name, count in ops(model).items() if "Linear" not in name} == {"Gemm": 1, "Reshape": 2}
    product = next(node for node in model.graph if node.op_type == "Gemm")
    assert [value.producer().inputs[1].const_value.numpy().shape for value in product.inputs[1:]] == [(12,), (12,)]  # weight and bias
    got = run_in_runtime(model, feeds)[0]
    assert min(snr(expected[..., column], got[..., column]) for column in range(12)) > 30.0


def test_a_bias_has_the_scale_of_the_products() -> None:
    model = network()
    quantized(model)
    conv = next(node for node in model.graph if node.op_type == "Conv")
    activation, weights, bias = (value.producer() for value in conv.inputs)
    scale = {name: node.inputs[1].const_value.numpy() for name, node in (("x", activation), ("w", weights), ("b", bias))}
    np.testing.assert_allclose(scale["b"], scale["x"] * scale["w"], rtol=1e-6)
    assert scale["w"].shape == (8,)
    codes = bias.inputs[0].const_value.numpy()
    assert np.abs(codes * scale["b"].astype(np.float64) - weight(8, seed=1)).max() <= scale["b"].max() / 2 * (1 + 1e-6)


ATTENTION = """s = MatMul(q, k) m = Add(s, mask) p = Softmax <axis: int = -1> (m) o = MatMul(p, v)
    t = Transpose <perm = [0, 2, 1]> (o) a = Add(q, q) b = MatMul(t, a) c = Reshape(b, sizes) y = Relu(c)"""


def attention() -> ir.Model:
    return with_weights(ATTENTION, "float[1,8,8] q, float[1,8,8] k, float[1,8,8] v", mask=weight(1, 8, 8, seed=1), sizes=np.array([8, 8]))


@pytest.mark.parametrize(("for_htp", "codes"), [
    (False, {"q", "k", "v", "s", "m", "p", "o", "t", "a", "b", "c", "y"}),
    (True, {"q", "k", "v", "o", "t", "a", "y"}),  # of b, c is a view
])
def test_htp_multiplies_no_two_activations_as_integers(for_htp: bool, codes: set[str]) -> None:
    model = attention()
    feeds = feed(model)
    expected = run_in_double(model, feeds)[0]
    run(model, (quantize_static(measured, for_htp), REMOVE_UNUSED))
    quantizers = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert {str(node.inputs[0].name).removesuffix("_exact") for node in quantizers} == codes
    assert snr(expected, run_in_runtime(model, feeds)[0]) > 60.0


def test_the_gains_of_a_layer_norm_have_16_bits_and_its_bias_fits_beside_a_small_input() -> None:
    model = with_weights("y = LayerNormalization(x, g, b)", "float[5,16] x", g=weight(16, seed=1), b=weight(16, seed=2))
    feeds = {"x": 1e-3 * feed(model)["x"]}  # whose scale times that of the gains, 2^31 times, is less than the bias
    expected = run_in_double(model, feeds)[0]
    run(model, (quantize_static(lambda _: {"x": (-4e-3, 4e-3), "y": (-8.0, 8.0)}),))
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    assert norm.inputs[1].producer().inputs[0].dtype == ir.DataType.INT16
    assert snr(expected, run_in_runtime(model, feeds)[0]) > 60.0


def test_the_argument_of_a_sine_is_exact_and_the_host_takes_it() -> None:
    model = with_weights("a = Mul(t, f) s = Sin(a) y = MatMul(s, w)", "float t", f=np.geomspace(1, 1e-3, 8, dtype=np.float32)[None],
                         w=weight(8, 4))
    ranges: Ranges = {"t": (0.0, 999.0), "a": (0.0, 999.0), "s": (-1.0, 1.0), "y": (-9.0, 9.0)}
    feeds = {"t": np.array(981.3, np.float32)}
    expected = run_in_runtime(model, feeds)[0]
    quantized(model, lambda _: ranges)
    assert snr(expected, run_in_runtime(model, feeds)[0]) > 38.0
    host = split_host(model)
    assert host is not None
    assert set(ops(host)) == {"Mul", "Sin"}
    assert "QuantizeLinear" in ops(model)


@pytest.mark.parametrize(("ranges", "sentence"), [
    ({"x": (0.0, 1.0)}, "The range of 'y' was not measured: it cannot be quantized."),
    ({"x": (0.0, np.inf), "y": (0.0, 1.0)}, "The range of 'x' is not finite: it cannot be quantized."),
])
def test_what_was_not_measured_is_refused(ranges: Ranges, sentence: str) -> None:
    with pytest.raises(GraphError, match=sentence):
        run(with_weights("y = Relu(x)", "float[3] x"), (quantize_static(lambda _: ranges),))


def test_nothing_to_measure_with_is_refused() -> None:
    with pytest.raises(GraphError, match=r"Activations are quantized by their ranges, and nothing measures them here: take"):
        run(with_weights("y = Sigmoid(x)", "float[3] x"), (quantize_static(None),))


def test_a_scale_that_is_twice_too_large_is_seen() -> None:
    model = network()
    feeds = feed(model)
    expected = run_in_double(model, feeds)[0]
    quantized(model)
    conv = next(node for node in model.graph if node.op_type == "Gemm")
    scales = conv.inputs[1].producer().inputs[1]
    scales.const_value = ir.tensor(2 * scales.const_value.numpy())
    assert snr(expected, run_in_runtime(model, feeds)[0]) < 10.0
