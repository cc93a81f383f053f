"""The passes over whole models, each on the smallest graph that shows what it does and what it leaves alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import applied, graph, ops

from graph_passes.errors import GraphError
from graph_passes.passes.constants import FOLD_CONSTANTS, LIFT_CONSTANTS
from graph_passes.passes.duplicates import MERGE_INITIALIZERS, MERGE_NODES
from graph_passes.passes.functions import INLINE_FUNCTIONS
from graph_passes.passes.metadata import CLEAR_METADATA
from graph_passes.passes.names import NAME_NODES, SCOPES
from graph_passes.passes.shapes import INFER_SHAPES, SHARE_SIZES
from graph_passes.passes.simplify import SIMPLIFY
from graph_passes.passes.static_shapes import static_shapes
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.passes.weights import FOLD_WEIGHTS, transposed
from graph_passes.pipelines import PORTABLE
from graph_passes.sizes import elements
from graph_passes.step import run
from graph_passes.values import dimensions


class Untouchable(Exception):
    """Somebody looked at a large weight."""


def untouchable(shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.LazyTensor:
    """A weight whose array nobody may ask for."""

    def refuse() -> ir.TensorProtocol:
        raise Untouchable

    return ir.LazyTensor(refuse, dtype, ir.Shape(shape))


def with_weights(body: str, inputs: str, **weights: ir.TensorProtocol) -> ir.Model:
    """A graph whose initializers are `weights`; `__` in a name stands for a dot."""
    declared = ", ".join(f"float[{','.join(map(str, tensor.shape))}] {name}" for name, tensor in weights.items())
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}, {declared}) => (float[] y) {{ {body} }}')
    model.graph.outputs[0].shape = None
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = weights[value.name or ""]
        value.name = (value.name or "").replace("__", ".")
        model.graph.register_initializer(value)
    return model


# --- constants


def test_every_form_of_a_constant_node_becomes_an_initializer() -> None:
    body = (
        "a = Constant <value_float=2.0> () b = Constant <value_floats=[1.0, 2.0]> () c = Constant <value = float[2] {3, 4}> () "
        "d = Mul(a, b) e = Add(d, c) y = Add(x, e)"
    )
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g (float[N,2] x) => (float[N,2] y) {{ {body} }}')
    assert LIFT_CONSTANTS.run(model) == 3
    assert applied(model, FOLD_CONSTANTS) == [2]
    assert ops(model) == {"Add": 1}


def test_constants_fold_through_chains_and_several_outputs() -> None:
    model = graph(
        "a, b = Split <axis=0> (c, s) d = Mul(a, b) e = Sqrt(d) y = Add(x, e)",
        "float[N,2] x",
        initializers="float[4] c = {1, 2, 4, 8}, int64[2] s = {2, 2}",
    )
    assert applied(model, FOLD_CONSTANTS) == [3]
    assert ops(model) == {"Add": 1}


@pytest.mark.parametrize(
    ("body", "inputs", "initializers"),
    [
        (
            "d = DequantizeLinear(q, s) y = Add(x, d)",
            "float[N,2] x",
            "uint8[2] q = {1, 2}, float s = {0.5}",
        ),  # that weights are small is the point
        ("r = RandomUniformLike <seed=1.0> (c) y = Add(x, r)", "float[N,2] x", "float[2] c = {1, 2}"),
        ("e = Expand(c, s) y = Add(x, e)", "float[1,1] x", "float c = {1}, int64[2] s = {4096, 4096}"),  # 64 MB out of 20 bytes
        ("y = Relu(c)", "float[N,2] x", "float[2] c = {1, 2}"),  # an output has to be computed
        ("y = Add(x, d)", "float[2] x, float[2] d", "float[2] d = {1, 2}"),  # a default is no constant
    ],
)
def test_what_is_not_folded(body: str, inputs: str, initializers: str) -> None:
    model = graph(body, inputs, initializers=initializers)
    before = ir.to_proto(model).SerializeToString()
    assert FOLD_CONSTANTS.run(model) == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_a_tensor_of_unknown_size_is_not_made() -> None:
    model = graph("e = Expand(c, s) y = Add(x, e)", "float[1,1] x", initializers="float c = {1}, int64[2] s = {4096, 4096}")
    for node in model.graph:
        node.outputs[0].shape = None
    assert FOLD_CONSTANTS.run(model) == 0


# --- weights


@pytest.mark.parametrize(
    ("body", "shape", "result"),
    [
        ("t = Transpose <perm=[1,0]> (m__weight) y = MatMul(x, t)", (1024, 512), lambda w: w.T),
        ("t = Transpose(m__weight) y = MatMul(x, t)", (1024, 512), lambda w: w.T),
        (
            "s = Constant <value_ints=[512, 1024]> () t = Reshape(m__weight, s) y = MatMul(x, t)",
            (1024, 512),
            lambda w: w.reshape(512, 1024),
        ),
        ("t = Cast <to=11> (m__weight) u = Cast <to=1> (t) y = MatMul(x, u)", (512, 1024), lambda w: w),
        ("a = Constant <value_ints=[0]> () t = Unsqueeze(m__weight, a) u = Squeeze(t, a) y = MatMul(x, u)", (512, 1024), lambda w: w),
    ],
)
def test_moved_weights_are_made_when_they_are_written(body: str, shape: tuple[int, ...], result: object) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model = with_weights(body, "float[N,512] x", m__weight=ir.tensor(array))
    run(model, PORTABLE)
    (weight,) = model.graph.initializers.values()
    assert ops(model) == {"MatMul": 1}
    assert weight.name is not None
    assert weight.name.startswith("m.weight")
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), result(array))  # type: ignore[operator]

    model = with_weights(body, "float[N,512] x", m__weight=untouchable(shape))
    run(model, PORTABLE)  # raises if any pass looks
    (weight,) = model.graph.initializers.values()
    assert weight.const_value is not None
    with pytest.raises(Untouchable):
        weight.const_value.numpy()


@pytest.mark.parametrize("shape", [(1, 1), (64, 3), (65, 130), (0, 4)])
def test_a_matrix_of_any_size_is_transposed(shape: tuple[int, int]) -> None:
    matrix = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(transposed(matrix), matrix.T)


def test_no_pass_looks_at_large_weights() -> None:
    body = (
        "e = Gather(a, i) f = MatMul(e, b__weight) g = Add(f, c__bias) h = Mul(g, d) k = Add(h, d) l = Where(m, k, d) "
        "n = Concat <axis=0> (l, d) "
        "o = Reshape(n, s) p = Identity(o) y = Add(p, c__bias)"
    )
    large = {"a": (512, 1024), "b__weight": (1024, 1024), "c__bias": (512, 1024), "d": (512, 1024)}
    model = with_weights(body, "int64[512] i, bool[512,1024] m, int64[2] s", **{name: untouchable(shape) for name, shape in large.items()})
    steps = run(model, PORTABLE)
    assert sum(step.applied for step in steps) > 0
    with pytest.raises(Untouchable):
        model.graph.initializers["b.weight"].const_value.numpy()  # type: ignore[union-attr]


def test_a_weight_with_two_users_is_not_stored_twice() -> None:
    array = np.ones((1024, 512), np.float32)
    model = with_weights(
        "t = Transpose <perm=[1,0]> (m__weight) u = MatMul(x, t) y = MatMul(u, m__weight)", "float[N,512] x", m__weight=ir.tensor(array)
    )
    assert run(model, [FOLD_WEIGHTS])[0].applied == 0
    # but two transposes of one weight are one
    body = "t = Transpose <perm=[1,0]> (m__weight) u = Transpose <perm=[1,0]> (m__weight) v = MatMul(x, t) w = MatMul(x, u) y = Add(v, w)"
    model = with_weights(body, "float[N,512] x", m__weight=ir.tensor(array))
    assert [step.applied for step in run(model, [MERGE_NODES, FOLD_WEIGHTS])] == [2, 1]


# --- shapes


def test_inference_names_what_follows_from_names() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[N,4,H] x) => (float[] y) '
        "{ a = Transpose <perm=[2,0,1]> (x) z = Shape(a) b = Reshape(a, z) y = Relu(b) }"
    )
    model.graph.outputs[0].shape = None
    assert run(model, [INFER_SHAPES, INFER_SHAPES])[0].applied == 4
    assert INFER_SHAPES.run(model) == 0
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert dimensions(values["b"]) == ("H", "N", 4)
    assert elements(values["z"]) == ("H", "N", 4)


def test_inference_leaves_a_sequence_a_sequence() -> None:
    model = graph("s = SplitToSequence <axis=1> (x, n) y = SequenceAt(s, i)", "float[N,6] x", initializers="int64 n = {3}, int64 i = {0}")
    (sequence,) = next(node for node in model.graph if node.op_type == "SplitToSequence").outputs
    assert isinstance(sequence.type, ir.SequenceType)


def test_sizes_are_read_once_and_known_ones_not_at_all() -> None:
    body = (
        "a = Relu(x) s = Shape(x) n = Gather(s, zero) t = Shape(a) m = Gather(t, zero) k = Gather(t, one) "
        "v = Unsqueeze(n, axis) w = Unsqueeze(m, axis) "
        "u = Unsqueeze(k, axis) c = Concat <axis=0> (v, u) d = Concat <axis=0> (w, u) e = Reshape(a, c) f = Reshape(x, d) y = Add(e, f)"
    )
    model = graph(body, "float[N,6] x", initializers="int64 zero = {0}, int64 one = {1}, int64[1] axis = {0}")
    # t is s, m is n, k and u are 6, w is v, and c and d are s
    assert applied(model, SHARE_SIZES) == [7]
    run(model, [REMOVE_UNUSED])
    assert ops(model) == {"Relu": 1, "Shape": 1, "Reshape": 2, "Add": 1}


def test_unknown_sizes_are_not_taken_for_equal() -> None:
    model = graph(
        "s = Shape(a) t = Shape(b) c = Reshape(x, s) d = Reshape(x, t) y = Concat <axis=0> (c, d)", "float[6] x, float[] a, float[] b"
    )
    for value in model.graph.inputs[1:]:
        value.shape = ir.Shape([None, None])
    assert SHARE_SIZES.run(model) == 0


# --- duplicates, unused, functions


def test_equal_nodes_become_one() -> None:
    model = graph("a = Relu(x) b = Relu(x) c = LeakyRelu <alpha=0.5> (x) d = Add(a, b) y = Add(d, c)", "float[N,6] x")
    assert applied(model, MERGE_NODES) == [1]
    assert ops(model) == {"Relu": 1, "LeakyRelu": 1, "Add": 2}


def test_random_numbers_are_drawn_as_often_as_asked() -> None:
    model = graph("a = RandomNormalLike(x) b = RandomNormalLike(x) y = Add(a, b)", "float[N,6] x")
    assert MERGE_NODES.run(model) == 0


def test_equal_constants_become_one_but_parameters_stay_apart() -> None:
    model = with_weights(
        "e = Add(x, a) f = Add(e, b) g = Mul(f, m__scale) h = Mul(g, n__scale) y = Add(h, c)",
        "float[N,2] x",
        **{name: ir.tensor(np.ones(2, np.float32)) for name in ("a", "b", "m__scale", "n__scale")},
        c=ir.tensor(np.ones((1, 2), np.float32)),
    )
    run(model, [INFER_SHAPES])
    assert applied(model, MERGE_INITIALIZERS) == [1]
    assert set(model.graph.initializers) == {"a", "m.scale", "n.scale", "c"}


def test_parameters_with_one_storage_become_one() -> None:
    array = np.ones((1024, 1024), np.float32)
    files = [
        ir.ExternalTensor("weights", offset, array.nbytes, ir.DataType.FLOAT, shape=ir.Shape(array.shape), name="w") for offset in (0, 0, 8)
    ]
    for tensors, merged in (([ir.tensor(array), ir.tensor(array), ir.tensor(array.copy())], 1), (files, 1)):
        model = with_weights(
            "a = MatMul(x, e__w) b = MatMul(a, d__w) y = MatMul(b, f__w)",
            "float[N,1024] x",
            **dict(zip(("e__w", "d__w", "f__w"), tensors, strict=True)),
        )
        assert MERGE_INITIALIZERS.run(model) == merged


def test_unused_nodes_initializers_and_imports_go() -> None:
    model = graph(
        "a = Relu(x) b = Neg(a) c = Add(b, w) y = Abs(x)", "float[N,2] x", initializers="float[2] w = {1, 2}, float[2] v = {3, 4}"
    )
    model.graph.opset_imports["com.example"] = 1
    assert applied(model, REMOVE_UNUSED) == [6]
    assert ops(model) == {"Abs": 1}
    assert not model.graph.initializers
    assert dict(model.opset_imports) == {"": 20}


FUNCTIONS = """<ir_version: 9, opset_import: ["" : 20, "{domain}" : 1]>
g (float[N] x) => (float[N] y) {{ y = {domain}.Twice(x) }}
<domain: "{domain}", opset_import: ["" : 20]> Twice (a) => (b) {{ b = Add(a, a) }}"""


def test_functions_are_inlined_but_not_the_bodies_of_our_own_operators() -> None:
    model = ir.from_onnx_text(FUNCTIONS.format(domain="local"))
    assert INLINE_FUNCTIONS.run(model) == 1
    assert ops(model) == {"Add": 1}
    model = ir.from_onnx_text(FUNCTIONS.format(domain="handheld"))
    run(model, PORTABLE)
    assert ops(model) == {"Twice": 1}
    assert len(model.functions) == 1
    assert dict(model.opset_imports) == {"": 20, "handheld": 1}


# --- names, metadata


def test_names_come_from_the_module_that_was_traced() -> None:
    model = graph(
        "a = Relu(x) b = Relu(a) c = Mul(b, two) y = Add(c, w)", "float[N,2] x", initializers="float two = {2}, float[2] w = {1, 2}"
    )
    relu, again, mul, add = model.graph
    relu.metadata_props[SCOPES] = "['', 'net', 'net.act', 'relu_1']"
    again.metadata_props[SCOPES] = "['', 'net', 'net.act', 'relu_2']"
    mul.name = "/net/scale/Mul_17"
    add.name = "node_Add_3"
    assert applied(model, NAME_NODES) == [9]
    assert [node.name for node in model.graph] == ["net.act/Relu", "net.act/Relu_1", "net/scale/Mul", "Add"]
    assert [node.outputs[0].name for node in model.graph] == [
        "net.act/Relu_output_0",
        "net.act/Relu_1_output_0",
        "net/scale/Mul_output_0",
        "y",
    ]
    assert set(model.graph.initializers) == {"net/scale/Mul_input_1", "Add_input_1"}
    assert NAME_NODES.run(model) == 0


def test_names_that_are_in_the_way_move() -> None:
    model = graph(
        "Relu_1_output_0 = Relu(x) Relu_output_0 = Relu(Relu_1_output_0) Add_output_0 = Abs(Relu_output_0) y = Neg(Add_output_0)",
        "float[N,2] x",
    )
    assert applied(model, NAME_NODES) == [7]
    assert [node.outputs[0].name for node in model.graph] == ["Relu_output_0", "Relu_1_output_0", "Abs_output_0", "y"]


def test_metadata_goes_but_the_authors_notes_on_the_model_stay() -> None:
    model = graph("a = Relu(x) y = Add(a, w)", "float[N,2] x", initializers="float[2] w = {1, 2}")
    relu, _ = model.graph
    relu.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/somewhere/model.py"'
    relu.doc_string = "where it was"
    model.graph.doc_string = model.doc_string = "a graph"
    model.graph.initializers["w"].metadata_props["kind"] = "PARAMETER"
    model.graph.inputs[0].metadata_props["kind"] = "USER_INPUT"
    model.metadata_props.update({"pkg.torch.version": "2", "labels": "cat,dog"})
    model.producer_name, model.producer_version = "pytorch", "2.13"
    assert applied(model, CLEAR_METADATA) == [5]
    assert dict(model.metadata_props) == {"labels": "cat,dog"}
    assert (model.producer_name, model.producer_version) == ("handheld-diffusion", None)
    assert CLEAR_METADATA.run(model) == 0


# --- static shapes, onnxsim


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 2)}, "The graph has no input 'z'. Its inputs are x, w."),
        ({"x": (1,)}, "Input 'x' has 2 dimensions, not 1."),
        ({"x": (0, 6)}, "A shape of input 'x' needs positive sizes, not 0x6."),
        ({"x": (2, 7)}, "Axis 1 of input 'x' is 6 in the graph and cannot become 7."),
        ({"x": (2, 6), "w": (3, 6)}, "Input 'w' makes N 3, but another input makes it 2."),
    ],
)
def test_shapes_that_cannot_be(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    model = graph("y = Add(x, w)", "float[N,6] x, float[N,6] w")
    with pytest.raises(GraphError) as error:
        static_shapes(shapes).run(model)
    assert (str(error.value), error.value.exit_code) == (message, 2)


def test_static_shapes_fold_what_they_decide() -> None:
    body = "s = Shape(x) n = Gather(s, zero) r = Range(zero, n, one) f = Cast <to=1> (r) t = Reshape(f, c) e = Expand(t, s) y = Add(x, e)"
    model = graph(body, "float[N,M] x", initializers="int64 zero = {0}, int64 one = {1}, int64[2] c = {-1, 1}")
    # 2 dimensions; Shape, Gather, Range, Cast, Reshape and Expand
    assert run(model, [static_shapes({"x": (3, 5)})])[0].applied == 8
    assert ops(model) == {"Add": 1}
    assert str(model.graph.outputs[0].shape) == "[3,5]"


def test_onnxsim_is_taken_where_it_helps() -> None:
    model = graph(
        "a = Conv(x, w) y = BatchNormalization(a, s, b, m, v)",
        "float[1,1,6,6] x",
        initializers=("float[2,1,1,1] w = {1, 2}, float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 1}, float[2] v = {1, 4}"),
    )
    before = ops(model)
    assert run(model, [SIMPLIFY])[0].applied == 1
    assert (before, ops(model)) == ({"Conv": 1, "BatchNormalization": 1}, {"Conv": 1})
    assert SIMPLIFY.run(model) == 0


def test_onnxsim_reads_no_large_weight() -> None:
    """So a model may be larger than what can be serialized."""
    weight = untouchable((600, 600))
    model = with_weights("a = Transpose <perm=[1,0]> (x) b = Transpose <perm=[1,0]> (a) y = MatMul(b, w)", "float[N,600] x", w=weight)
    INFER_SHAPES.run(model)
    assert SIMPLIFY.run(model) == 2
    assert ops(model) == {"MatMul": 1}
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.graph.initializers["w"].const_value is weight
    assert SIMPLIFY.run(model) == 0  # what is no better is dropped, and all is as it was
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.graph.initializers["w"].const_value is weight
