"""`graph_passes.work`: the count of multiply-accumulates against counts made by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graph_passes.work import Uncounted, count_macs


def graph(body: str, inputs: str, output: str, weights: str = "") -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({output}) <{weights}> {{ {body} }}')


def weight(name: str, *shape: int) -> str:
    numbers = 1
    for axis in shape:
        numbers *= axis
    return f"float[{','.join(map(str, shape))}] {name} = {{{', '.join(['1'] * numbers)}}}"


def test_convolution_counts_every_output_element_with_its_whole_window() -> None:
    model = graph(
        "y = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w)",
        "float[n,4,h,w] x",
        "float[n,6,p,q] y",
        weight("w", 6, 4, 3, 3),
    )
    assert count_macs(model, {"x": (2, 4, 10, 8)}) == {"3x3 conv": 2 * 6 * 5 * 4 * (4 * 3 * 3)}


def test_grouped_convolution_counts_the_channels_of_its_group() -> None:
    model = graph("y = Conv <group=2> (x, w)", "float[1,4,5,5] x", "float[1,6,5,5] y", weight("w", 6, 2, 1, 1))
    assert count_macs(model, {}) == {"1x1 conv": 6 * 5 * 5 * 2}


def test_transposed_convolution_counts_every_input_element_with_its_whole_window() -> None:
    model = graph("y = ConvTranspose <strides=[2,2]> (x, w)", "float[1,3,4,4] x", "float[1,5,8,8] y", weight("w", 3, 5, 2, 2))
    assert count_macs(model, {}) == {"2x2 conv": 3 * 4 * 4 * (5 * 2 * 2)}


@pytest.mark.parametrize(("attributes", "left"), [("", (7, 3)), ("<transA=1>", (3, 7))])
def test_gemm_counts_the_inner_axis_of_the_side_that_is_transposed(attributes: str, left: tuple[int, int]) -> None:
    model = graph(f"y = Gemm {attributes} (x, w)", f"float[{left[0]},{left[1]}] x", "float[7,2] y", weight("w", 3, 2))
    assert count_macs(model, {}) == {"linear": 7 * 3 * 2}


def test_product_of_activations_is_attention_and_a_transposed_weight_is_a_weight() -> None:
    body = """
        turned = Transpose <perm=[1,0]> (w)
        k = MatMul (x, turned)
        kt = Transpose <perm=[0,2,1]> (k)
        a = MatMul (x, kt)
        y = MatMul (a, k)
    """
    model = graph(body, "float[b,n,4] x", "float[b,n,4] y", weight("w", 4, 4))
    assert count_macs(model, {"x": (2, 5, 4)}) == {"linear": 2 * 5 * 4 * 4, "attention": 2 * (2 * 5 * 5 * 4)}


def test_shapes_that_the_graph_computes_from_its_input_are_followed() -> None:
    body = """
        shape = Shape (x)
        zero = Constant <value_ints=[0]> ()
        last = Constant <value_ints=[3]> ()
        batch = Gather (shape, zero)
        width = Gather (shape, last)
        two = Constant <value_ints=[2]> ()
        half = Div (width, two)
        rest = Constant <value_ints=[-1]> ()
        target = Concat <axis=0> (batch, rest, half)
        flat = Reshape (x, target)
        turned = Transpose <perm=[0,2,1]> (flat)
        y = MatMul (flat, turned)
    """
    model = graph(body, "float[b,c,h,w] x", "float[b,n,n] y")
    assert count_macs(model, {"x": (2, 3, 4, 6)}) == {"attention": 2 * (3 * 4 * 2) ** 2 * 3}
    assert model.graph.inputs[0].shape == ["b", "c", "h", "w"]  # the model itself is untouched


def test_functions_are_counted_through_their_bodies() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 20, "handheld" : 1]>
        g (float[2,5,4] q, float[2,6,4] k) => (float[2,5,6] y) { y = handheld.Scores (q, k) }
        <opset_import: ["" : 20], domain: "handheld">
        Scores (q, k) => (y) { t = Transpose <perm=[0,2,1]> (k)  y = MatMul (q, t) }
    """)
    assert count_macs(model, {}) == {"attention": 2 * 5 * 6 * 4}
    assert len(model.graph) == 1


def test_what_is_computed_of_weights_alone_is_no_work_of_a_run() -> None:
    model = graph("v = MatMul (a, b)  y = MatMul (x, v)", "float[2,3] x", "float[2,5] y", f"{weight('a', 3, 4)}, {weight('b', 4, 5)}")
    assert count_macs(model, {}) == {"linear": 2 * 3 * 5}


def test_unknown_shape_is_refused_by_name() -> None:
    model = graph("y = MatMul (x, w)", "float[n,4] x", "float[n,2] y", weight("w", 4, 2))
    with pytest.raises(Uncounted, match=r"the shape of 'x' at the MatMul '.*' stays \[n,4\]: give the shape of every free input"):
        count_macs(model, {})


def test_shape_for_an_input_that_is_not_there_is_refused() -> None:
    model = graph("y = MatMul (x, w)", "float[n,4] x", "float[n,2] y", weight("w", 4, 2))
    with pytest.raises(Uncounted, match="the graph has no input 'sample': it has x"):
        count_macs(model, {"sample": (1, 4)})


def test_branches_are_refused() -> None:
    body = "y = If (c) <then_branch = t () => (float[1] a) {a = Identity (x)}, else_branch = e () => (float[1] b) {b = Neg (x)}>"
    model = graph(body, "bool c, float[1] x", "float[1] y")
    with pytest.raises(Uncounted, match=r"the graph branches or loops at the If .*: how often its body runs is not known before"):
        count_macs(model, {})
