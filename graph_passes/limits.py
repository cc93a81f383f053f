"""What providers refuse of operators that they have: the rules that ONNX Runtime's providers check node by node.

Read from the sources of ONNX Runtime (core/providers/nnapi/nnapi_builtin/builders, coreml/builders, xnnpack, webgpu,
contrib_ops/cuda). The operators
themselves are in tables: ONNX Runtime ships those of NNAPI and CoreML, the others are in `graph_passes.operators`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graph_passes.contrib import bias_add, bias_split_gelu
from graph_passes.contrib.group_norm import MOST_CHANNELS
from graph_passes.contrib.nodes import ALWAYS_FLOAT32
from graph_passes.values import constant, dimensions, integer, is_constant, is_standard, static_shape

COREML_LONGEST = 16_384  # CoreML loads no model in which a dimension is longer (apple/coremltools issue 1003)
COREML_ANY_TYPE = ("And", "ArgMax", "Cast", "Concat", "GatherND", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Unsqueeze", "Where")
HOST = "move to the host"
FLOAT, HALF, INT32 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32
WEBGPU_INT64 = ("Add", "Cast", "Clip", "Concat", "Equal", "Gather", "ReduceSum", "Reshape", "Shape", "Sub", "Tile", "Where")  # since 1.29
CUDA_ANY_TYPE = (
    "And", "Cast", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "If", "Loop", "Not", "Or",
    "Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Split", "Squeeze", "Transpose", "Trilu", "Unsqueeze", "Where",
)  # fmt: skip
CUDA_INTEGERS = (
    "Abs", "Add", "Clip", "CumSum", "Div", "Equal", "GatherND", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod",
    "Mul", "Neg", "NonZero", "OneHot", "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceSum", "Sub", "Tile",
)  # fmt: skip
CUDA_INTEGER = (INT32, ir.DataType.INT64, ir.DataType.BOOL)


@dataclass(frozen=True)
class Fault:
    """One reason why a target does not take a node: a sentence, the name of the pass that mends it ("" where there is none), and what in
    particular is at fault."""

    why: str
    mend: str = ""
    what: str = ""


Limits = Callable[[ir.Node], Iterator[Fault]]


def nnapi(node: ir.Node) -> Iterator[Fault]:
    """The faults of a node whose operator NNAPI's table lists and whose shapes are static."""
    yield from _types(node, (FLOAT,), {"Cast": (FLOAT, INT32), "Gather": (FLOAT, INT32), "Concat": (FLOAT, INT32)})
    for value in (*node.inputs, *node.outputs):
        if value is not None and len(_shape(value)) > 4:
            yield Fault("a tensor has more than 4 dimensions", what=_described(value))
            break
    yield from (Fault("an input of the graph is a scalar", HOST, _described(value)) for value in _scalar_inputs(node))
    if node.op_type == "Conv":
        yield from _constants(node, {1: "weight", 2: "bias"})
        if len(_shape(node.inputs[0])) != 4:
            yield Fault("only 2D convolutions are taken")
    elif node.op_type == "MatMul":
        yield from _nnapi_product(node)
    elif node.op_type == "Gemm":
        yield from _gemm(node)
    elif node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "ReduceMean", "Slice", "Split"):
        yield from _constants(node, dict.fromkeys(range(1, len(node.inputs)), "shape, axes or lengths"))
        if node.op_type == "Split" and len({_shape(output)[integer(node, "axis", 0)] for output in node.outputs}) > 1:
            yield Fault("the parts are of different lengths, and NNAPI splits in equal ones")
    elif node.op_type == "Gather" and not is_constant(node.inputs[1]) and _dtype(node.inputs[1]) != INT32:
        yield Fault("the indices are neither constant nor int32", HOST)
    elif node.op_type == "Pad":
        yield from _constants(node, {1: "amounts", 2: "value"})
        amounts = constant(node.inputs[1])
        if _text(node, "mode", "constant") != "constant" or (amounts is not None and (amounts < 0).any()):
            yield Fault("only padding with a constant is taken, and no cropping")
    elif node.op_type == "Clip":
        yield from _constants(node, {1: "minimum", 2: "maximum"})
        bounds = tuple(None if (array := constant(value)) is None else float(array) for value in node.inputs[1:])
        if bounds not in ((0, 6), (-1, 1)):
            yield Fault("it is clipped to other bounds than 0 and 6, or -1 and 1")
    elif node.op_type == "Resize":
        yield from _resize(node, whole=False)


def coreml(node: ir.Node) -> Iterator[Fault]:
    """The faults of a node whose operator CoreML's table for MLProgram lists and whose shapes are static."""
    yield from _types(node, (FLOAT, HALF), dict.fromkeys(COREML_ANY_TYPE, tuple(ir.DataType)))
    for index, value in enumerate(node.inputs):
        sizes = _shape(value)
        if len(sizes) > 5:
            yield Fault("a tensor has more than 5 dimensions", what=_described(value))
        if any(size > COREML_LONGEST for size in sizes):
            yield Fault(f"a dimension is longer than {COREML_LONGEST}", "unfold groups", _described(value))
        if 0 in sizes and not (node.op_type == "Resize" and index == 1):
            yield Fault("a tensor has no elements", what=_described(value))
    if node.op_type == "Conv":
        yield from _constants(node, {2: "bias"})
        if len(_shape(node.inputs[0])) not in (3, 4):
            yield Fault("only 1D and 2D convolutions are taken")
    elif node.op_type == "Gemm":
        yield from _constants(node, {1: "matrix B", 2: "matrix C"})
        yield from _gemm(node)
    elif node.op_type in ("InstanceNormalization", "LayerNormalization", "GroupNormalization"):
        yield from _constants(node, {1: "scale", 2: "bias"})
        if node.op_type == "LayerNormalization" and "axis" not in node.attributes:
            yield Fault("the axis is left to the default, which CoreML's provider takes for 1")
        if len(node.outputs) > 1:
            yield Fault("the mean and the deviation are asked for too")
    elif node.op_type in ("Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "ReduceMean", "ReduceSum", "ReduceMax"):
        yield from _constants(node, dict.fromkeys(range(1, len(node.inputs)), "shape, axes or lengths"))
    elif node.op_type == "Pow" and {_dtype(value) for value in node.inputs} != {FLOAT}:
        yield Fault("base and exponent are not both float32")
    elif node.op_type == "Where" and not {_dtype(value) for value in node.inputs[1:]} <= {FLOAT, HALF}:
        yield Fault("the branches are neither float32 nor float16")
    elif node.op_type == "Resize":
        yield from _resize(node, whole=True)


def xnnpack(node: ir.Node) -> Iterator[Fault]:
    """The faults of a node whose operator XNNPACK has and whose shapes are static. What falls out runs beside it, in the same memory."""
    yield from _types(node, (FLOAT,), {})
    sizes = _shape(node.inputs[0])
    if node.op_type in ("Conv", "ConvTranspose"):
        yield from _constants(node, {1: "weight", 2: "bias"})
        if len(sizes) != 4:
            yield Fault("only 2D convolutions are taken")
    elif node.op_type == "MatMul":
        if not is_constant(node.inputs[1]):
            yield Fault("the second factor is no constant")
        elif len(sizes) != 2 or len(_shape(node.inputs[1])) != 2:
            yield Fault("it is no product of two matrices", "multiply linear layers flat", _sizes(sizes))
    elif node.op_type == "Gemm":
        yield from _constants(node, {1: "matrix B", 2: "matrix C"})
        yield from _gemm(node)
        if len(node.inputs) < 3 or node.inputs[2] is None:
            yield Fault("it has no C, and the provider dies of that (ONNX Runtime's issue 28541)", "add zero biases")
    elif node.op_type == "Softmax" and integer(node, "axis", -1) not in (-1, len(sizes) - 1):
        yield Fault("it is not over the last axis")
    elif node.op_type == "Resize" and _text(node, "mode", "nearest") != "linear":
        yield Fault("only bilinear interpolation is taken")


def webgpu(node: ir.Node) -> Iterator[Fault]:
    """The faults of a node whose operator WebGPU's provider has and whose shapes are static."""
    yield from _types(node, (FLOAT, HALF, INT32, ir.DataType.UINT32), dict.fromkeys(WEBGPU_INT64, tuple(ir.DataType)))
    if node.op_type == "MultiHeadAttention":
        if any(len(_shape(value)) == 5 for value in node.inputs[:2]):
            yield Fault("queries, keys and values are packed into one tensor")
        if len(node.inputs) > 4 and node.inputs[4] is not None:
            yield Fault("it has a padding mask of keys")


def cuda(node: ir.Node) -> Iterator[Fault]:
    """The faults of a node whose operator the CUDA provider has. A shape that is not known is none."""
    dtype = _dtype(node.inputs[0]) if node.inputs else None
    taken = tuple(ir.DataType) if node.op_type in CUDA_ANY_TYPE else (FLOAT, HALF, *(CUDA_INTEGER if node.op_type in CUDA_INTEGERS else ()))
    if dtype is not None and dtype not in taken:
        yield Fault(f"the first input is {dtype.name}", what=_described(node.inputs[0]))
    last = (dimensions(node.inputs[0]) or (None,))[-1] if node.inputs else None
    widths = {"BiasSplitGelu": bias_split_gelu.CUDA_WIDTHS, "BiasAdd": bias_add.CUDA_WIDTHS}.get(node.op_type, ())
    if isinstance(last, int) and widths and last not in widths:
        yield Fault(f"it has {last} channels, not {', '.join(map(str, widths[:-1]))} or {widths[-1]}")
    if node.op_type in ALWAYS_FLOAT32:
        if integer(node, "channels_last", 1) != 1:
            yield Fault("the channels are not its last axis", "channels last")
        if any(_dtype(node.inputs[index]) != FLOAT for index in ALWAYS_FLOAT32[node.op_type]):
            yield Fault("gamma and beta are not float32")
        of_group = last // integer(node, "groups", 1) if isinstance(last, int) else 0
        if of_group % 2 or of_group > MOST_CHANNELS:
            yield Fault(f"its groups have an odd number of channels, or more than {MOST_CHANNELS}")


def _types(node: ir.Node, usual: tuple[ir.DataType, ...], others: dict[str, tuple[ir.DataType, ...]]) -> Iterator[Fault]:
    """The providers look at the type of the first input."""
    dtype = _dtype(node.inputs[0]) if node.inputs else None
    if dtype not in others.get(node.op_type, usual):
        yield Fault(f"the first input is {dtype.name if dtype else 'of unknown type'}", HOST, _described(node.inputs[0]))


def _nnapi_product(node: ir.Node) -> Iterator[Fault]:
    first, second = (_shape(value) for value in node.inputs)
    plain = len(first) == len(second) == 2 and is_constant(node.inputs[1])
    batched = len(first) >= 3 and len(first) == len(second) and first[:-2] == second[:-2]
    if not plain and not batched:
        how = "multiply linear layers flat" if is_constant(node.inputs[1]) else ""
        yield Fault(
            "it is no matrix times a constant one, nor as many times as many matrices", how, f"{_sizes(first)} times {_sizes(second)}"
        )


def _gemm(node: ir.Node) -> Iterator[Fault]:
    scales = [attribute.as_float() for name in ("alpha", "beta") if (attribute := node.attributes.get(name)) is not None]
    if integer(node, "transA", 0) or any(scale != 1 for scale in scales):
        yield Fault("A is transposed, or a product is scaled")
    elif not integer(node, "transB", 0) and not is_constant(node.inputs[1]):
        yield Fault("B is neither constant nor transposed")
    if len(node.inputs) > 2 and any(size != 1 for size in _shape(node.inputs[2])[:-1]):
        yield Fault("C is more than one row")


def _resize(node: ir.Node, whole: bool) -> Iterator[Fault]:
    """Nearest neighbours of NCHW pictures by constant factors; `whole`: by whole numbers only."""
    if len(_shape(node.inputs[0])) != 4:
        yield Fault("only pictures in NCHW are resized")
    before, after = _shape(node.inputs[0]), _shape(node.outputs[0])
    if before[:2] != after[:2] or (whole and any(new % old for old, new in zip(before, after, strict=True))):
        yield Fault("it does more than to enlarge height and width by whole factors")
    form = (
        _text(node, "mode", "nearest"),
        _text(node, "coordinate_transformation_mode", "half_pixel"),
        _text(node, "nearest_mode", "round_prefer_floor"),
    )
    if form[0] != "linear" and form != ("nearest", "asymmetric", "floor"):
        yield Fault("nearest neighbours are taken asymmetric and rounded down only")
    if any(value is None for value in node.inputs[:2]):
        yield Fault(
            "the region of interest is left out, which ONNX Runtime's usability checker takes for a dynamic one", "enlarge by factors"
        )
    given = [value for value in node.inputs[2:] if value is not None]
    if not given or not all(is_constant(value) for value in given):
        yield Fault("the factors are no constants", "fix static shapes")
    if integer(node, "antialias", 0) or integer(node, "exclude_outside", 0) or "axes" in node.attributes:
        yield Fault("it smooths, leaves out the outside, or names axes")
    if _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        yield Fault("it keeps the ratio of the sides")


def _constants(node: ir.Node, meaning: dict[int, str]) -> Iterator[Fault]:
    for index, what in meaning.items():
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and not is_constant(value):
            yield Fault(
                f"the {what} is no constant", "fix static shapes" if is_standard(node, "Reshape", "Slice") else "", _described(value)
            )


def _scalar_inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and value.is_graph_input() and static_shape(value) == ()]


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """The sizes of a tensor; () for one that is left out."""
    return (static_shape(value) or ()) if value is not None else ()


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.as_string())


def _described(value: ir.Value | None) -> str:
    return "" if value is None else f"'{value.name}' {value.shape}"


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
