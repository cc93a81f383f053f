"""f(weight) -> a weight that is computed when it is written: Transpose, Reshape, Squeeze, Unsqueeze and Cast of initializers

Torch's linear layers hold [out, in] and MatMul wants [in, out], so the exporter leaves a Transpose at every one of them. ONNX Runtime would
fold them at each start, in memory. Here the new initializer is an `ir.LazyTensor`, whose array is made only while it is written.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from graph_passes.passes.constants import derived_name
from graph_passes.step import Pass
from graph_passes.values import (
    SMALL,
    add_made,
    integer,
    integers,
    is_constant,
    is_parameter_name,
    is_standard,
    lengths,
    static_shape,
    stored,
)

ROWS = 64  # of a matrix that are transposed at a time: as many cache lines as they then fill stay in the cache

MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast")


def fold_weights(model: ir.Model) -> int:
    """Returns how many nodes became weights. A weight that something else uses too is left alone: it would be stored twice."""
    folded = 0
    for graph in list(model.graphs()):
        for node in graph:
            weight = node.inputs[0] if is_standard(node, *MOVES) else None
            if weight is None or not is_constant(weight) or len(weight.uses()) != 1 or node.outputs[0].is_graph_output():
                continue
            source, output = stored(weight), node.outputs[0]
            if source.nbytes <= SMALL and not is_parameter_name(weight.name):
                continue
            order = integers(node, "perm") or list(range(len(source.shape)))[::-1]
            shape = tuple(lengths(source)[axis] for axis in order) if node.op_type == "Transpose" else static_shape(output)
            dtype = ir.DataType(integer(node, "to", 0)) if node.op_type == "Cast" else source.dtype
            if shape is None or dtype.is_string():
                continue
            compute = functools.partial(moved, source, tuple(order) if node.op_type == "Transpose" else None, shape, dtype)
            output.replace_all_uses_with(add_made(graph, derived_name(node), compute, dtype, shape))
            graph.remove(node, safe=True)
            folded += 1
    return folded


def moved(source: ir.TensorProtocol, order: tuple[int, ...] | None, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Tensor:
    """The array of `source` with its axes in `order`, in `shape`, as `dtype`."""
    array = source.numpy()
    if order is not None:
        array = transposed(array) if order == (1, 0) else array.transpose(order)
    if dtype != source.dtype:
        array = array.astype(dtype.numpy())
    return ir.Tensor(np.ascontiguousarray(array.reshape(shape)), dtype=dtype)


def transposed(matrix: np.ndarray) -> np.ndarray:
    """A copy of the matrix's transpose. numpy's own goes through a column at a time, which takes five times as long for large ones."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), ROWS):
        result[:, start : start + ROWS] = matrix[start : start + ROWS].T
    return result


FOLD_WEIGHTS = Pass("fold weights", fold_weights)
