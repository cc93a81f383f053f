"""What stands in for com.microsoft's operators: against their definitions in float64, and against ONNX Runtime's kernels"""

from __future__ import annotations

import re
import zlib
from typing import Any

import contrib_ops
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import copy, run_in_double, run_in_runtime

from graph_passes.contrib.expand import expand
from graph_passes.errors import GraphError

NORM = {"groups": 3, "epsilon": 1e-3}
PICTURE = (2, 4, 5, 6)
AFFINE = ((6,), (6,))
HEADS = {"num_heads": 2, "scale": 0.7}

# operator, shapes of its inputs (None: left out), attributes, which outputs it gives
FORMS = [
    ("GroupNorm", (PICTURE, *AFFINE), {**NORM, "activation": 0, "channels_last": 1}, (0,)),
    ("GroupNorm", (PICTURE, *AFFINE), {**NORM, "activation": 1, "channels_last": 1}, (0,)),
    ("GroupNorm", ((2, 6, 4, 5), *AFFINE), {**NORM, "activation": 1, "channels_last": 0}, (0,)),
    ("SkipGroupNorm", (PICTURE, *AFFINE, PICTURE), {**NORM, "activation": 1, "channels_last": 1}, (0, 1)),
    ("SkipGroupNorm", (PICTURE, *AFFINE, (2, 1, 1, 6), (6,)), {**NORM, "activation": 1, "channels_last": 1}, (0, 1)),
    ("SkipGroupNorm", (PICTURE, *AFFINE, (2, 6)), {**NORM, "activation": 0, "channels_last": 1}, (0,)),
    ("BiasSplitGelu", ((2, 3, 8), (8,)), {}, (0,)),
    ("BiasAdd", ((2, 3, 8), (8,), (2, 3, 8)), {}, (0,)),
    ("NhwcConv", (PICTURE, (7, 3, 2, 6), (7,)), {"pads": (1, 0, 2, 1), "strides": (2, 1)}, (0,)),
    ("MultiHeadAttention", ((2, 3, 8), (2, 5, 8), (2, 5, 8)), HEADS, (0,)),
    ("MultiHeadAttention", ((2, 3, 8), (2, 5, 8), (2, 5, 8), None, None, (1, 1, 3, 5)), HEADS, (0,)),
    ("MultiHeadAttention", ((2, 3, 2, 3, 4),), HEADS, (0,)),
    ("MultiHeadAttention", ((2, 3, 2, 3, 4), None, None, None, None, (2, 2, 3, 3)), HEADS, (0,)),
    ("MultiHeadAttention", ((2, 3, 8), (2, 5, 2, 2, 4)), HEADS, (0,)),
    ("SkipLayerNormalization", ((2, 3, 8), (2, 3, 8), (8,), (8,)), {"epsilon": 1e-3}, (0, 3)),
    ("SkipLayerNormalization", ((2, 3, 8), (2, 3, 8), (8,), (8,), (8,)), {"epsilon": 1e-3}, (0, 3)),
]
ON_CPU = [form for form in FORMS if form[0] == "SkipLayerNormalization" or (form[0] == "MultiHeadAttention" and len(form[1][0]) == 3)]
ON_CPU = [form for form in ON_CPU if len(form[1]) != 2]  # packed keys and values it refuses
every_form = pytest.mark.parametrize(("op_type", "shapes", "attributes", "outputs"), FORMS)


def one_node(op_type: str, shapes: tuple[Any, ...], attributes: dict[str, Any], outputs: tuple[int, ...], single: bool = True) -> ir.Model:
    dtype = onnx.TensorProto.FLOAT if single else onnx.TensorProto.FLOAT16
    wide = ("gamma", "beta") if "GroupNorm" in op_type else ()
    ports = ports_of(op_type, shapes)
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT if name in wide else dtype, shape)
              for name, shape in ports if shape is not None]  # fmt: skip
    shape = list(contrib(op_type, feeds(ports), attributes)[0].shape)
    results = [f"y{index}" if index in outputs else "" for index in range(max(outputs) + 1)]
    node = onnx.helper.make_node(op_type, [name if each is not None else "" for name, each in ports], results, domain="com.microsoft",
                                 name="node", **attributes)  # fmt: skip
    made = [onnx.helper.make_tensor_value_info(name, dtype, shape) for name in results if name]
    imports = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph([node], "g", inputs, made), opset_imports=imports, ir_version=9))


def ports_of(op_type: str, shapes: tuple[Any, ...]) -> list[tuple[str, tuple[int, ...] | None]]:
    """The inputs' names and shapes."""
    names = ("x", "gamma", "beta", "skip", "bias") if "GroupNorm" in op_type else tuple("abcdef")
    return list(zip(names, shapes, strict=False))


def feeds(ports: list[tuple[str, tuple[int, ...] | None]]) -> dict[str, np.ndarray | None]:
    generator = np.random.default_rng(zlib.crc32(repr(ports).encode()))
    return {name: None if shape is None else generator.normal(size=shape).astype(np.float16).astype(np.float64) for name, shape in ports}


def contrib(op_type: str, inputs: dict[str, np.ndarray | None], attributes: dict[str, Any]) -> list[np.ndarray]:
    """What the definition says, one array for each output that it has."""
    arrays = list(inputs.values())
    if op_type == "MultiHeadAttention":
        padded = [*arrays, *[None] * 6]
        return [contrib_ops.multi_head_attention(padded[0], padded[1], padded[2], padded[5], **attributes)]
    name = re.sub("(?<!^)([A-Z])", r"_\1", op_type).lower()
    result = getattr(contrib_ops, name)(*arrays, **attributes)
    return list(result) if isinstance(result, tuple) else [result]


@every_form
def test_it_is_the_definition(op_type: str, shapes: Any, attributes: Any, outputs: Any) -> None:
    model = one_node(op_type, shapes, attributes, outputs)
    names = [value.name for value in model.graph.outputs]
    ports = ports_of(op_type, shapes)
    inputs = {name: array for name, array in feeds(ports).items() if array is not None}
    expected = contrib(op_type, feeds(ports), attributes)
    assert expand(model) == 1
    assert {node.domain for node in model.graph} == {""}
    assert [value.name for value in model.graph.outputs] == names
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for got, wanted in zip(run_in_double(model, inputs), expected, strict=False):
        # epsilon and scale are attributes, which are float32
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


@every_form
def test_it_takes_float16(op_type: str, shapes: Any, attributes: Any, outputs: Any) -> None:
    model = one_node(op_type, shapes, attributes, outputs, single=False)
    expand(model)
    ports = ports_of(op_type, shapes)
    inputs = {value.name: feeds(ports)[str(value.name)].astype(value.dtype.numpy()) for value in model.graph.inputs}  # type: ignore[union-attr]
    expected = contrib(op_type, feeds(ports), attributes)
    for got, wanted in zip(run_in_runtime(model, inputs), expected, strict=False):
        assert got.dtype == np.float16
        # a dozen roundings of 2^-11, of sums of a few numbers of the size of 10
        np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0.02, atol=0.03)


@pytest.mark.parametrize(("op_type", "shapes", "attributes", "outputs"), ON_CPU)
def test_the_cpu_provider_has_the_same_operator(op_type: str, shapes: Any, attributes: Any, outputs: Any) -> None:
    model = one_node(op_type, shapes, attributes, outputs)
    expanded = copy(model)
    expand(expanded)
    ports = ports_of(op_type, shapes)
    inputs = {name: array for name, array in feeds(ports).items() if array is not None}
    for ours, theirs in zip(run_in_runtime(expanded, inputs), run_in_runtime(model, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_body_can_not_take_the_place_of_an_operator_of_onnx_runtime() -> None:
    """Why there is a graph beside the graph: with a function of its name, GroupNorm is still looked for among the kernels."""
    model = one_node(*FORMS[0])
    body = one_node(*FORMS[0])
    expand(body)
    function = ir.Function("com.microsoft", "GroupNorm", graph=body.graph, attributes=[])
    model.functions[function.identifier()] = function
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented, match="implementation for GroupNorm"):
        run_in_runtime(model, {})


@pytest.mark.parametrize(
    ("op_type", "shapes", "sentence"),
    [
        ("Inverse", ((2, 2),), "'node' is a com.microsoft.Inverse, which has no definition here."),
        (
            "MultiHeadAttention",
            ((2, 3, 8), (2, 5, 8), (2, 5, 8), (24,)),
            "'node' is a MultiHeadAttention with a bias, a padding mask or a past, which has no definition here.",
        ),
    ],
)
def test_what_has_no_definition_is_a_sentence(op_type: str, shapes: Any, sentence: str) -> None:
    text = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in zip("abcdef", shapes, strict=False))
    model = ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]> g ({text}) => (float[a] y) '
        f"{{ y = com.microsoft.{op_type} <num_heads=2> ({', '.join('abcdef'[: len(shapes)])}) }}"
    )
    model.graph[0].name = "node"
    with pytest.raises(GraphError, match=f"^{re.escape(sentence)}$"):
        expand(model)

