"""Weights of 8 and 4 bits: the codes and scales say the weights to half a step, and the operators read them as they are meant."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import feed, read_late, run_in_double, run_in_runtime, weight, with_weights

from graph_passes.contrib.expand import expand
from graph_passes.errors import GraphError
from graph_passes.passes.names import NAME_NODES
from graph_passes.passes.quantize_weights import best_scales, quantize_weights, rounded
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.pipelines import for_target
from graph_passes.step import Step, run
from graph_passes.work import count_macs


def quantized(model: ir.Model, bits: int, four_bit_convolutions: bool = True) -> Step:
    step = run(model, (quantize_weights(bits, four_bit_convolutions), REMOVE_UNUSED, NAME_NODES))[0]
    onnx.checker.check_model(ir.to_proto(model))
    return step


def unpacked(model: ir.Model, bits: int) -> np.ndarray:
    """The matrix [K, N] that a MatMulNBits multiplies by, from the words of its definition (ONNX Runtime, ContribOperators.md): codes lie
    in [N, blocks, bytes], low bits first, their zero is 2^(bits-1), and every block has a scale."""
    (node,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    rows, columns, block = (node.attributes[name].as_int() for name in ("K", "N", "block_size"))
    codes, scales = node.inputs[1].const_value.numpy(), node.inputs[2].const_value.numpy()
    values = codes.astype(int) if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], block).astype(int)
    matrix = (values - 2 ** (bits - 1)) * scales.astype(np.float64).reshape(columns, -1, 1)
    return matrix.reshape(columns, -1)[:, :rows].T


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("body", "shape", "turned"), [
    ("y = MatMul(x, w)", (128, 40), False), ("y = MatMul(x, w)", (100, 50), False),  # rows that no block divides
    ("y = Gemm<transB = 1>(x, w, b)", (40, 128), True), ("y = Gemm(x, w, b)", (128, 40), False),
])
def test_products(bits: int, body: str, shape: tuple[int, int], turned: bool) -> None:
    stored = weight(*shape)
    matrix = (stored.T if turned else stored).astype(np.float64)
    bias = {"b": weight(matrix.shape[1], seed=1)} if "b)" in body else {}
    model = with_weights(body, f"float[7,{matrix.shape[0]}] x", w=stored, **bias)
    feeds = feed(model)
    step = quantized(model, bits)
    assert step.applied == 1
    assert step.notes[0].startswith(f"1 products in {bits} bits; ")

    found = unpacked(model, bits)
    signal = 10 * np.log10(np.square(matrix).sum() / np.square(found - matrix).sum())
    assert signal > {8: 43.0, 4: 19.0}[bits]  # normal weights in blocks of 64: 45 and 20 dB, see export.parity
    expected = feeds["x"] @ found + bias.get("b", 0.0)
    got = run_in_runtime(model, feeds)[0]
    # with 4 bits the runtime rounds activations to 8, a step of max|x| / 127 over blocks of 32 or 64: 40 dB
    error = np.square(got - expected).sum() / np.square(expected).sum()
    assert error < (1e-10 if bits == 8 else 1e-4)


@pytest.mark.parametrize(("bits", "four", "channels", "operator", "count"), [
    (8, True, 64, ("", "DequantizeLinear"), 24), (4, True, 64, ("com.microsoft", "DequantizeLinear"), 24 * 9),
    (4, False, 64, ("", "DequantizeLinear"), 24),  # where a target has no 4-bit integers
    (4, True, 61, ("com.microsoft", "DequantizeLinear"), 24 * 9),  # 549 weights to a channel: blocks of 61
])
def test_convolutions(bits: int, four: bool, channels: int, operator: tuple[str, str], count: int) -> None:
    stored = weight(24, channels, 3, 3)
    model = with_weights("y = Conv<pads = [1, 1, 1, 1]>(x, w)", f"float[1,{channels},4,4] x", w=stored)
    feeds = feed(model)
    quantized(model, bits, four)
    (node,) = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert (node.domain, node.op_type) == operator
    codes, scales = node.inputs[0].const_value, node.inputs[1].const_value.numpy()
    assert scales.shape == (count,)
    assert codes.dtype == (ir.DataType.INT4 if operator[0] else ir.DataType.INT8)
    found = (codes.numpy().astype(np.float64).reshape(count, -1) * scales[:, None]).reshape(stored.shape)
    signal = 10 * np.log10(np.square(stored).sum() / np.square(found - stored).sum())
    assert signal > (18.5 if operator[0] else 40.0)

    plain = with_weights("y = Conv<pads = [1, 1, 1, 1]>(x, w)", f"float[1,{channels},4,4] x", w=found.astype(np.float32))
    np.testing.assert_allclose(run_in_runtime(model, feeds)[0], run_in_double(plain, feeds)[0], rtol=1e-4, atol=1e-4)


def test_embeddings_are_looked_up_as_codes() -> None:
    table = weight(300, 32)
    model = with_weights("y = Gather(w, ids)", "int64[2,5] ids", w=table)
    feeds = {"ids": np.random.default_rng(0).integers(0, 300, (2, 5))}
    assert quantized(model, 4).notes[0].startswith("1 embeddings in 8 bits; 0.0 MB of weights, 0.0 MB before")
    got = run_in_runtime(model, feeds)[0]
    # half a step of the largest of a row at most, where nothing was clipped: the scale search clips the largest by 5% of it or less here
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(got - table[feeds["ids"]]) <= (0.05 * 127 + 0.5) * steps[feeds["ids"]]).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_scale_is_the_best_of_those_that_are_tried(bits: int) -> None:
    rows = weight(50, 64)
    rows[3] = 0.0
    rows[4, 0] = 40.0  # an outlier, which is worth clipping with few bits
    scales = best_scales(rows, bits)
    assert scales[3] == 1.0
    top = 2 ** (bits - 1) - 1
    largest = np.where(np.abs(rows).max(axis=1) > 0, np.abs(rows).max(axis=1) / top, 1.0).astype(np.float32)

    def errors(with_scales: np.ndarray) -> np.ndarray:
        return np.square(rounded(rows, with_scales, bits) * with_scales[:, None].astype(np.float64) - rows).sum(axis=1)

    chosen = errors(scales)
    for clip in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65):
        assert (chosen <= errors((clip * largest).astype(np.float32)) * (1 + 1e-4)).all()
    inside = np.abs(rows) <= (top + 0.5) * scales[:, None]
    off = np.abs(rounded(rows, scales, bits) * scales[:, None].astype(np.float64) - rows)
    assert (off[inside] <= 0.5 * (1 + 1e-5) * np.broadcast_to(scales[:, None], rows.shape)[inside]).all()  # half a step


def test_layers_that_keep_their_weights_say_why() -> None:
    model = with_weights("a = MatMul(x, small) b = MatMul(x, shared) c = MatMul(b, shared) y = Gemm<alpha = 2.0>(c, scaled)",
                         "float[3,64] x", small=weight(64, 63), shared=weight(64, 64), scaled=weight(64, 64))
    refused = " ".join(run(model, (quantize_weights(8),))[0].refused)
    assert "4032 weights are too few to save anything" in refused
    assert refused.count("its weights are another node's, too") == 2
    assert "it scales or transposes" in refused


def test_nothing_is_computed_before_it_is_written_and_the_file_is_as_small_as_it_says() -> None:
    model = with_weights("y = MatMul(x, w)", "float[2,512] x", w=weight(512, 256))
    reads = read_late(model, "w")
    for bits, share in ((8, 3.7), (4, 7.0)):
        made = model.clone()
        reads.clear()
        run(made, (quantize_weights(bits), REMOVE_UNUSED))
        assert not reads
        assert 4 * 512 * 256 / len(ir.to_proto(made).SerializeToString()) > share


def test_a_wrong_scale_is_seen() -> None:
    """The fault that the export's parity must see: one scale twice as large makes its layer another one."""
    model = with_weights("y = MatMul(x, w)", "float[3,64] x", w=weight(64, 64))
    feeds = feed(model)
    expected = run_in_double(model, feeds)[0]
    quantized(model, 8)
    (scales,) = [value for name, value in model.graph.initializers.items() if "MatMul_input_2" in name or name.endswith(".scales")]
    scales.const_value = ir.tensor(2 * scales.const_value.numpy())
    got = run_in_runtime(model, feeds)[0]
    assert 10 * np.log10(np.square(expected).sum() / np.square(expected - got).sum()) < 1.0


def test_what_a_target_does_not_have_is_one_sentence() -> None:
    for target, precision, has in (("cpu", "w8", "fp32, bf16, fp16"), ("nnapi", "fp16", "fp32"), ("coreml", "w4", "fp32, fp16")):
        with pytest.raises(GraphError, match=f"The target '{target}' does not have the precision '{precision}': it has {has}."):
            for_target(target, precision=precision)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_definition_in_standard_operators_computes_the_same(bits: int) -> None:
    """What counts the work of a graph, and stands in where a provider has no such kernels."""
    model = with_weights("a = MatMul(x, w) t = Reshape(a, sizes) y = Conv(t, f)", "float[4,64] x", w=weight(64, 128),
                         sizes=np.array([1, 32, 4, 4]), f=weight(16, 32, 3, 3))
    feeds = feed(model)
    quantized(model, bits)
    expected = run_in_runtime(model, feeds)[0]
    assert sum(count_macs(model, {"x": (4, 64)}).values()) == 4 * 64 * 128 + 16 * 32 * 9 * 4
    assert expand(model) == (1 if bits == 8 else 2)
    got = run_in_runtime(model, feeds)[0]
    error = np.square(got - expected).sum() / np.square(expected).sum()
    assert error < (1e-10 if bits == 8 else 1e-4)  # with 4 bits the kernel rounds activations to 8
