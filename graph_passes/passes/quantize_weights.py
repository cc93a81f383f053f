"""MatMul(x, W) -> com.microsoft.MatMulNBits(x, codes, scales); Conv(x, W) -> Conv(x, DequantizeLinear(codes, scales)); embeddings alike

Weights become integers of 8 or 4 bits with a scale to each block; activations stay as they are. In a block of weights w with n bits,

    q = clip(round(w / s), -2^(n-1), 2^(n-1) - 1),   s = c max|w| / (2^(n-1) - 1),

where c is that of CLIPS with the least sum of (w - q s)^2: a little of the largest weights is given for finer steps in the others. A weight
that is not clipped is off by s / 2 at most. Nothing is computed before it is written.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graph_passes.contrib.nodes import insert
from graph_passes.rule import emit
from graph_passes.step import Outcome, Pass
from graph_passes.values import add_initializer, add_made, graph_of, integer, is_constant, is_standard, lengths, stored

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
FEWEST = 4096  # weights of a layer: below it, there is nothing to save
BLOCKS = (64, 32)  # of a product: the larger where it divides the rows
LEAST_BLOCK = 16  # of a convolution in 4 bits: below it, scales take more than they save
AT_ONCE = 1 << 20  # weights that a scale is searched for together, so that they stay in the cache


def quantize_weights(bits: int, four_bit_convolutions: bool = True) -> Pass:
    """The pass for 8 or 4 bits. ONNX has no 4-bit integers before opset 21: without `four_bit_convolutions`, which take
    com.microsoft.DequantizeLinear, convolutions have 8 bits in either case, as embeddings do."""
    return Pass(f"quantize weights to {bits} bits", functools.partial(_apply, bits=bits, four_bit_convolutions=four_bit_convolutions))


def _apply(model: ir.Model, bits: int, four_bit_convolutions: bool) -> Outcome:
    graph, done, refused = model.graph, Counter[str](), []
    before = _bytes(graph)
    for node in list(graph):
        place = 0 if is_standard(node, "Gather") else 1
        weight = node.inputs[place] if is_standard(node, "MatMul", "Gemm", "Conv", "Gather") else None
        if not is_constant(weight) or weight.dtype != ir.DataType.FLOAT:
            continue
        shape = lengths(stored(weight))
        if why := _refusal(node, weight, shape):
            refused.append(f"{node.op_type} '{node.name}': {why}")
        elif is_standard(node, "Conv"):
            fits = bits == 4 and four_bit_convolutions and _block(math.prod(shape[1:])) >= LEAST_BLOCK
            node.replace_input_with(1, _filters(node, weight, shape, 4 if fits else 8))
            done[f"convolutions in {4 if fits else 8} bits"] += 1
        elif is_standard(node, "Gather"):
            _embedding(node, weight, shape)
            done["embeddings in 8 bits"] += 1
        else:
            _product(node, weight, shape, bits)
            done[f"products in {bits} bits"] += 1
    notes = ", ".join(f"{count} {what}" for what, count in sorted(done.items()))
    after = sum(value.const_value.nbytes for value in graph.initializers.values() if value.uses() and value.const_value is not None)
    return Outcome(done.total(), (f"{notes}; {after / 1e6:.1f} MB of weights, {before / 1e6:.1f} MB before",), tuple(refused))


def _bytes(graph: ir.Graph) -> int:
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)


def _refusal(node: ir.Node, weight: ir.Value, shape: tuple[int, ...]) -> str:
    """Why a layer keeps its weights; "" where it does not."""
    if math.prod(shape) < FEWEST:
        return f"{math.prod(shape)} weights are too few to save anything"
    if len({use.node for use in weight.uses()}) > 1:
        return "its weights are another node's, too"
    if not is_standard(node, "Conv") and len(shape) != 2:
        return "its weights are no matrix"
    plain = {"transA": 0, "alpha": 1.0, "beta": 1.0}
    if is_standard(node, "Gemm") and any(name in node.attributes and node.attributes[name].value != value for name, value in plain.items()):
        return "it scales or transposes"
    return "it looks up along another axis" if is_standard(node, "Gather") and integer(node, "axis", 0) != 0 else ""


def _product(node: ir.Node, weight: ir.Value, shape: tuple[int, ...], bits: int) -> None:
    """A product with a constant matrix, and a Gemm's bias."""
    turned = is_standard(node, "Gemm") and integer(node, "transB", 0) == 1
    columns, rows = shape if turned else shape[::-1]  # of a product [.., rows] @ [rows, columns]
    block = next((size for size in BLOCKS if rows % size == 0), BLOCKS[-1])
    blocks = math.ceil(rows / block)

    def arrange(array: np.ndarray) -> np.ndarray:
        matrix = array if turned else array.T
        return np.pad(matrix, ((0, 0), (0, blocks * block - rows))).reshape(columns * blocks, block)

    def pack(codes: np.ndarray) -> np.ndarray:
        unsigned = (codes.astype(np.int16) + (1 << bits - 1)).astype(np.uint8).reshape(columns, blocks, block)
        return unsigned if bits == 8 else unsigned[..., 0::2] | unsigned[..., 1::2] << 4

    graph = node.graph
    assert isinstance(graph, ir.Graph)
    packed = (columns, blocks, block * bits // 8)
    codes, scales = quantized(graph, weight, arrange, bits, (columns * blocks,), pack, packed, ir.DataType.UINT8)
    # activations of 8 bits cost 45 dB, of which weights of 4 bits show nothing, and are twice as fast
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": block, **({"accuracy_level": 4} if bits == 4 else {})}
    output = node.outputs[0]
    result = insert(node, "MatMulNBits", [node.inputs[0], codes, scales], attributes, node.name).outputs[0]
    if is_standard(node, "Gemm") and len(node.inputs) > 2 and node.inputs[2] is not None:
        result.type, result.shape = output.type, output.shape
        result = emit(node, "Add", [result, node.inputs[2]], suffix="_bias")
    _replace(node, result)


def _filters(node: ir.Node, weight: ir.Value, shape: tuple[int, ...], bits: int) -> ir.Value:
    """The weights of a convolution: 8 bits with a scale to each output channel, 4 bits with one to each block of a channel."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    if bits == 8:
        rows = shape[0]
        codes, scales = quantized(graph, weight, lambda array: array.reshape(rows, -1), 8, (rows,), lambda codes: codes.reshape(shape),
                                  shape, ir.DataType.INT8)
        return _typed(emit(node, "DequantizeLinear", [codes, scales], {"axis": 0}, suffix="_filters"), weight)
    block = _block(math.prod(shape[1:]))
    rows = math.prod(shape) // block
    codes, scales = quantized(graph, weight, lambda array: array.reshape(rows, block), 4, (rows,), lambda codes: codes, (rows, block),
                              ir.DataType.INT4)
    flat = insert(node, "DequantizeLinear", [codes, scales], {"axis": 0}, f"{node.name}_codes").outputs[0]
    flat.type, flat.shape = weight.type, ir.Shape((rows, block))
    target = add_initializer(graph, ir.tensor(np.array(shape, np.int64)), f"{weight.name}.shape")
    return _typed(emit(node, "Reshape", [flat, target], suffix="_filters"), weight)


def _block(weights: int) -> int:
    """The largest number of at most 64 that divides the weights of an output channel."""
    return next(size for size in range(BLOCKS[0], 0, -1) if weights % size == 0)


def _embedding(node: ir.Node, weight: ir.Value, shape: tuple[int, ...]) -> None:
    """Gather(table, ids) -> Cast(Gather(codes, ids)) * Gather(scales, ids): a scale to each row."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    codes, scales = quantized(graph, weight, lambda array: array, 8, (shape[0], 1), lambda codes: codes, shape, ir.DataType.INT8)
    ids, output = node.inputs[1], node.outputs[0]
    looked_up = emit(node, "Gather", [codes, ids], suffix="_codes")
    looked_up.type, looked_up.shape = ir.TensorType(ir.DataType.INT8), output.shape
    scale = emit(node, "Gather", [scales, ids], suffix="_scales")
    scale.type = output.type
    scale.shape = None if output.shape is None else ir.Shape([*list(output.shape)[:-1], 1])
    cast = emit(node, "Cast", [looked_up], {"to": int(ir.DataType.FLOAT)}, suffix="_cast")
    cast.type, cast.shape = output.type, output.shape
    _replace(node, emit(node, "Mul", [cast, scale], suffix="_scaled"))


def _typed(value: ir.Value, like: ir.Value) -> ir.Value:
    value.type, value.shape = like.type, like.shape
    return value


def _replace(node: ir.Node, result: ir.Value) -> None:
    """Puts `result` in the place of the node's output, under its name."""
    output = node.outputs[0]
    result.type, result.shape, name = output.type, output.shape, output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph_of(node).remove(node, safe=True)
    result.name = name


# --- the numbers ---------------------------------------------------------------------------------------------------------------------


def quantized(graph: ir.Graph, weight: ir.Value, arrange: Callable[[np.ndarray], np.ndarray], bits: int, many: tuple[int, ...],
              pack: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """Initializers for the codes of a weight, `pack`ed to `shape`, and for the scales, `many`: one for each row that `arrange` makes."""
    source = stored(weight)

    # kept once found: small, and the codes need them too
    @functools.cache
    def scales() -> np.ndarray:
        return best_scales(arrange(source.numpy()), bits)

    def codes() -> ir.Tensor:
        return ir.Tensor(np.ascontiguousarray(pack(rounded(arrange(source.numpy()), scales(), bits))).astype(dtype.numpy()), dtype=dtype)

    def written() -> ir.Tensor:
        return ir.Tensor(scales().reshape(many))

    return (add_made(graph, f"{weight.name}.codes", codes, dtype, shape),
            add_made(graph, f"{weight.name}.scales", written, ir.DataType.FLOAT, many))


def best_scales(rows: np.ndarray, bits: int) -> np.ndarray:
    """[R, b] weights -> [R] the scales with the least square error, float32; 1 where all weights are zero."""
    found = np.empty(len(rows), np.float32)
    count = max(1, AT_ONCE // rows.shape[1])
    for start in range(0, len(rows), count):
        part = np.ascontiguousarray(rows[start : start + count], np.float32)
        peak = np.abs(part).max(axis=1) / ((1 << bits - 1) - 1)
        peak[peak == 0] = 1.0
        best, least = peak, np.full(len(part), np.inf, np.float32)
        for clip in CLIPS:
            scale = np.float32(clip) * peak
            error = rounded(part, scale, bits) * scale[:, None] - part
            square = np.einsum("rb,rb->r", error, error)
            best, least = np.where(square < least, scale, best), np.minimum(square, least)
        found[start : start + count] = best
    return found


def rounded(rows: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """[R, b] weights, [R] scales -> [R, b] codes, int8."""
    half = 1 << bits - 1
    return np.clip(np.rint(rows / scales[:, None]), -half, half - 1).astype(np.int8)
