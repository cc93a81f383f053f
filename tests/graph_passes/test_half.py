"""float16: what overflows stays in float32, what is rounded is rounded as float16 rounds, and casts are counted."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import copy, feed, graph, ops, read_late, run_in_double, run_in_runtime, weight, with_weights

from graph_passes.errors import GraphError
from graph_passes.passes.half import HALF, Measure, Ranges, half
from graph_passes.passes.masks import bound_masks
from graph_passes.passes.names import NAME_NODES
from graph_passes.passes.round_half import ROUND_HALF
from graph_passes.step import run

# Two roundings to 11 bits on the way of every product and sum, in graphs of at most 12 operators: 75 dB - 10 log10(24)
ROUNDED_DB = 60.0
ATTENTION = """
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    turned = Transpose<perm = [0, 2, 1]>(k)
    scores = MatMul(q, turned)
    scaled = Mul(scores, scale)
    p = Softmax<axis = -1>(scaled)
    y = MatMul(p, v)
"""
DECODER = """
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    b = Add(a, a)
    n = InstanceNormalization(b, gain, offset)
    g = Sigmoid(n)
    s = Mul(n, g)
    y = Conv<pads = [1, 1, 1, 1]>(s, w2)
"""


def attention() -> ir.Model:
    """Scores of about 10^6, which the scale brings back to 10: as in SD 2.1, whose attention is black in float16."""
    large = {"wq": weight(8, 8, scale=400.0), "wk": weight(8, 8, scale=400.0, seed=1), "wv": weight(8, 8, seed=2)}
    return with_weights(ATTENTION, "float[1,6,8] x", **large, scale=np.array([1e-5], np.float32))


def decoder() -> ir.Model:
    """Activations of about 10^5 before a norm: as in SDXL's decoder."""
    weights = {"w1": weight(4, 4, 3, 3, scale=8e3), "w2": weight(4, 4, 3, 3, seed=1)}
    return with_weights(DECODER, "float[1,4,5,5] x", **weights, gain=np.ones(4, np.float32), offset=np.zeros(4, np.float32))


def measured(model: ir.Model) -> Ranges:
    """The ranges of all values on the test's inputs, by onnx's reference implementation in float64."""
    everything = copy(model)
    everything.graph.outputs[:] = [value for node in everything.graph for value in node.outputs]
    results = run_in_double(everything, feed(model))
    found = {str(value.name): array for value, array in zip(everything.graph.outputs, results, strict=True)}
    found |= feed(model)
    found |= {str(name): value.const_value.numpy() for name, value in model.graph.initializers.items()}
    return {name: (float(array.min()), float(array.max())) for name, array in found.items() if array.size}


def snr(expected: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - got).sum())) if np.isfinite(got).all() else -np.inf


def in_half_arithmetic(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    twin = copy(model)
    run(twin, (ROUND_HALF,))
    onnx.checker.check_model(ir.to_proto(twin), full_check=True)
    return run_in_runtime(twin, feeds)[0]


@pytest.mark.parametrize(("make", "kept"), [(attention, {"MatMul", "Transpose", "Mul"}),
                                            (decoder, {"Conv", "Add", "InstanceNormalization"})])
def test_what_overflows_stays_in_float32(make: object, kept: set[str]) -> None:
    model = make()  # type: ignore[operator]
    feeds = feed(model)
    expected = run_in_double(model, feeds)[0]
    black = copy(model)
    run(black, (half(), NAME_NODES))
    assert not np.isfinite(in_half_arithmetic(black, feeds)).all()  # the fault, reproduced

    mended = copy(model)
    step = run(mended, (half(measured), NAME_NODES))[0]
    onnx.checker.check_model(ir.to_proto(mended), full_check=True)
    assert snr(expected, in_half_arithmetic(mended, feeds)) > ROUNDED_DB
    assert {sentence.split()[0] for sentence in step.refused} <= kept
    assert any("reaches" in sentence for sentence in step.refused)
    assert step.applied >= 2  # the rest is float16 after all


def test_without_an_overflow_there_is_one_cast_for_each_input_and_output() -> None:
    model = with_weights(ATTENTION, "float[1,6,8] x", **{f"w{name}": weight(8, 8, seed=index) for index, name in enumerate("qkv")},
                         scale=np.array([0.3], np.float32))
    feeds = feed(model)
    expected = run_in_double(model, feeds)[0]
    step = run(model, (half(measured),))[0]
    assert ops(model)["Cast"] == 2
    assert step.notes == ("2 casts of at most 10; 0 of 8 nodes in float32, 0 of them to save casts",)
    assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == [
        ("x", ir.DataType.FLOAT), ("y", ir.DataType.FLOAT)]
    assert all(value.dtype == HALF for value in model.graph.initializers.values())
    run(model, (NAME_NODES,))
    assert snr(expected, run_in_runtime(model, feeds)[0]) > snr(expected, in_half_arithmetic(model, feeds)) > ROUNDED_DB


def test_the_twin_rounds_every_value_as_numpy_does() -> None:
    model = with_weights("a = Mul(x, w) b = Add(a, x) y = Sigmoid(b)", "float[3,4] x", w=weight(4))
    feeds = feed(model)
    run(model, (half(), NAME_NODES))
    x, w = feeds["x"].astype(np.float16), weight(4).astype(np.float16)
    total = (x.astype(np.float32) * w).astype(np.float16).astype(np.float32) + x
    expected = (1 / (1 + np.exp(-total.astype(np.float16).astype(np.float64)))).astype(np.float16)
    # ONNX Runtime's sigmoid is float32's, which may be a rounding away from the border between two float16 numbers
    np.testing.assert_allclose(in_half_arithmetic(model, feeds), expected.astype(np.float32), rtol=2**-10, atol=0)


def test_the_argument_of_a_sine_stays_in_float32() -> None:
    model = with_weights("a = Mul(t, f) s = Sin(a) c = Cos(a) e = Concat<axis = -1>(s, c) y = MatMul(e, w)", "float[1,1] t",
                         f=np.geomspace(1, 1e-3, 8, dtype=np.float32), w=weight(16, 4))
    feeds = {"t": np.array([[981.3]])}
    expected = run_in_double(model, feeds)[0]
    step = run(model, (half(measured_at(feeds)), NAME_NODES))[0]
    assert "Mul 'node': float16 is too coarse for the argument of a sine" in step.refused
    assert ops(model)["Cast"] == 2  # behind the sines, where they are one value, and before the output
    assert snr(expected, in_half_arithmetic(model, feeds)) > ROUNDED_DB


def measured_at(feeds: dict[str, np.ndarray]) -> Measure:
    return lambda model: {name: (float(array.min()), float(array.max())) for name, array in feeds.items()}


@pytest.mark.parametrize("masked", [-1e4, -100.0])
def test_a_mask_of_minus_infinity_becomes_one_that_float16_has_and_the_result_is_the_same(masked: float) -> None:
    lowest = float(np.finfo(np.float32).min)
    model = with_weights("m = Where(c, zero, low) s = Add(x, m) y = Softmax<axis = -1>(s)", "float[2,5] x, bool[2,5] c",
                         zero=np.zeros(1, np.float32), low=np.array([lowest], np.float32))
    feeds = feed(model)
    feeds["c"][:, 0] = True  # something is left to look at
    before = run_in_runtime(model, feeds)[0]
    assert run(model, (bound_masks(masked),))[0].applied == 1
    np.testing.assert_allclose(run_in_runtime(model, feeds)[0], before, rtol=1e-7, atol=1e-40)

    elsewhere = with_weights("m = Where(c, zero, low) y = Add(x, m)", "float[2,5] x, bool[2,5] c", zero=np.zeros(1, np.float32),
                             low=np.array([lowest], np.float32))
    assert run(elsewhere, (bound_masks(masked),))[0].applied == 0


def test_what_has_no_float16_and_what_takes_either_type() -> None:
    model = with_weights("""
        r = Resize<mode = "nearest">(x, , scales) s = Shape(r) z = ConstantOfShape(s) a = Add(r, z) f = Flatten<axis = 0>(a)
        y = MatMul(f, w) """, "float[1,1,2,2] x", scales=np.array([1, 1, 2, 2], np.float32), w=weight(16, 3))
    feeds = feed(model)
    expected = run_in_runtime(model, feeds)[0]
    run(model, (half(), NAME_NODES))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    kept = [value.dtype for value in model.graph.initializers.values() if value.shape == (4,)]
    assert kept == [ir.DataType.FLOAT]  # Resize takes its scales in nothing else
    assert ops(model)["Cast"] == 2  # none for Shape
    assert snr(expected, in_half_arithmetic(model, feeds)) > ROUNDED_DB


# every second product overflows, and the weights of the others are worth their casts
SCATTERED = " ".join(f"h{index} = MatMul(s{index - 1}, w{index}) s{index} = Mul(h{index}, small{index % 2})" for index in range(12))
SCATTERED_RANGES = {f"h{index}": (0.0, 1e5 if index % 2 else 1.0) for index in range(12)}
SCALES = {"small0": np.ones(1, np.float32), "small1": np.array([0.3], np.float32)}


def test_where_overflows_lie_scattered_the_smallest_stretches_between_follow() -> None:
    """So that the casts stay within their budget; the largest weights keep their float16."""
    sizes = [4] * 8 + [32] * 5
    weights = {f"w{index}": weight(*sizes[index : index + 2], seed=index) for index in range(12)}
    model = with_weights(f"{SCATTERED} y = MatMul(s11, wy)".replace("s-1", "x"), "float[1,4] x", **weights, wy=weight(32, 4), **SCALES)
    feeds = feed(model)
    expected = run_in_double(model, feeds)[0]
    step = run(model, (half(lambda _: SCATTERED_RANGES),))[0]
    assert ops(model)["Cast"] == 10
    assert step.notes[0].startswith("10 casts of at most 10;")
    halves = [str(name) for name, value in model.graph.initializers.items() if value.dtype == HALF]
    assert {"w8", "w10", "wy"} <= set(halves)
    assert {"w0", "w2"}.isdisjoint(halves)
    run(model, (NAME_NODES,))
    assert snr(expected, in_half_arithmetic(model, feeds)) > ROUNDED_DB


def test_too_many_casts_are_refused() -> None:
    """What is in float16 hangs together, by one value that all of it reads: it is all or nothing."""
    body = f"t = MatMul(e, w0) {SCATTERED} y = Add(s11, t)".replace("s-1", "x")
    for index in range(0, 12, 2):
        body = body.replace(f"MatMul(s{index - 1}, w{index})" if index else "MatMul(x, w0)", f"Gemm(s{index - 1}, w{index}, t)" if index
                            else "Gemm(x, w0, t)")
    model = with_weights(body, "float[1,4] x, float[1,4] e", **{f"w{index}": weight(4, 4, seed=index) for index in range(12)}, **SCALES)
    with pytest.raises(GraphError, match=r"In float16 the graph needs \d+ casts, where 11 are allowed \(3 for its inputs and outputs, "
                                         r"8 for its 26 nodes\): too many of its values overflow. Take fp32 for it."):
        run(model, (half(lambda _: SCATTERED_RANGES),))


def test_a_weight_that_float16_does_not_hold_is_refused_when_it_is_written() -> None:
    model = with_weights("y = MatMul(x, w)", "float[3,2] x", w=np.array([[1], [7e4]], np.float32))
    run(model, (half(),))
    with pytest.raises(GraphError, match=r"The weight 'w' has values beyond 65,504, which float16 does not hold: take another precision."):
        model.graph.initializers["w"].const_value.numpy()
    measured_first = with_weights("y = MatMul(x, w)", "float[3,2] x", w=np.array([[1], [7e4]], np.float32))
    assert run(measured_first, (half(measured),))[0].applied == 0  # where it was seen before, its node stays in float32


def test_weights_are_converted_while_they_are_written() -> None:
    model = with_weights("y = MatMul(x, w)", "float[2,8] x", w=weight(8, 8))
    reads = read_late(model, "w")
    run(model, (half(),))
    assert not reads
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weight(8, 8).astype(np.float16))
    assert len(reads) == 1


def test_branches_are_refused() -> None:
    model = graph("y = If(c) <then_branch = a () => (float[1] p) { p = Constant<value_floats = [1.0]>() }, "
                  "else_branch = b () => (float[1] q) { q = Constant<value_floats = [2.0]>() }>", "bool c", "float[1] y")
    with pytest.raises(GraphError, match=r"The graph has branches or loops, and is not converted to float16."):
        run(model, (half(),))
