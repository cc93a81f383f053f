"""The rules that make ONNX Runtime's own operators: the same function, by the definitions, and the sentences of what they leave"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import copy, feed, graph, ops, run_in_double, run_in_runtime

from graph_passes.contrib.attention import FUSE_MULTI_HEAD_ATTENTION
from graph_passes.contrib.bias_add import CUDA_WIDTHS as ADDED
from graph_passes.contrib.bias_add import fuse_bias_add
from graph_passes.contrib.bias_split_gelu import CUDA_WIDTHS as SPLIT
from graph_passes.contrib.bias_split_gelu import fuse_bias_split_gelu
from graph_passes.contrib.channels_last import CHANNELS_LAST
from graph_passes.contrib.expand import expand
from graph_passes.contrib.group_norm import FUSE_CONTRIB_GROUP_NORM
from graph_passes.contrib.nodes import DOMAIN
from graph_passes.contrib.packed_attention import PACK_ATTENTION
from graph_passes.contrib.skip_group_norm import FUSE_SKIP_GROUP_NORM
from graph_passes.contrib.skip_layer_norm import FUSE_SKIP_LAYER_NORM
from graph_passes.passes.half import half
from graph_passes.passes.names import NAME_NODES
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.pipelines import CUDA
from graph_passes.plan import plan
from graph_passes.step import Pass, run

if TYPE_CHECKING:
    from ..architectures import Traced

GROUP_NORM = """
  r = Reshape({x}, grouped) i = InstanceNormalization <epsilon=0.001> (r, ones, zeros) s = Shape({x}) q = Reshape(i, s)
  m = Mul(q, scale) n = Add(m, bias)
"""
SILU = "t = Sigmoid(n) {y} = Mul(n, t)"
AFFINE = "float[8,1,1] scale = {1,2,-1,0.5,1.5,-0.3,0.2,0.7}, float[8,1,1] bias = {0.1,0.2,0.3,-0.4,0.5,0,-0.6,0.9}"
FOUR_GROUPS = f"int64[3] grouped = {{0,4,-1}}, float[4] ones = {{1,1,1,1}}, float[4] zeros = {{0,0,0,0}}, {AFFINE}"
EIGHT = "{0.1,0.2,0.3,-0.4,0.5,0,-0.6,0.9}"


def weights(name: str, *shape: int) -> str:
    """An initializer of ONNX's text form with numbers of its own."""
    numbers = np.random.default_rng(list(name.encode())).normal(size=shape).astype(np.float32).ravel()
    return f"float[{','.join(map(str, shape))}] {name} = {{{','.join(repr(float(each)) for each in numbers)}}}"


def fused(model: ir.Model, *passes: Pass) -> list[int]:
    """Runs the passes and returns their counts, after holding that the definitions of what they made are the function of the graph."""
    before = copy(model)
    counts = [step.applied for step in run(model, (*passes, REMOVE_UNUSED))][:-1]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    expanded = copy(model)
    expand(expanded)
    assert [value.name for value in expanded.graph.outputs] == [value.name for value in before.graph.outputs]
    feeds = feed(before)
    for wanted, got in zip(run_in_double(before, feeds), run_in_double(expanded, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)  # epsilon and scale are float32
    return counts


def domains(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.domain == DOMAIN)


def left(model: ir.Model, rule: Pass) -> list[str]:
    """Why a rule leaves a graph as it is."""
    (step,) = run(model, (rule,))
    assert step.applied == 0
    return list(step.refused)


@pytest.mark.parametrize("silu", [True, False])
def test_group_norm(silu: bool) -> None:
    body = GROUP_NORM.format(x="x") + (SILU.format(y="y") if silu else "y = Neg(n)")
    model = graph(body, "float[N,8,5,M] x", initializers=FOUR_GROUPS)
    assert fused(model, FUSE_CONTRIB_GROUP_NORM) == [1]
    (node,) = (each for each in model.graph if each.domain == DOMAIN)
    assert {name: each.value for name, each in node.attributes.items()} == {
        "epsilon": np.float32(0.001), "groups": 4, "activation": int(silu), "channels_last": 0}  # fmt: skip


def test_group_norm_of_a_sequence_is_that_of_the_picture_it_is_made_of() -> None:
    body = """v = Reshape(x, grouped) i = InstanceNormalization(v, ones, zeros) w = Reshape(i, flat) m = Mul(w, a) y = Add(m, b)"""
    affine = AFFINE.replace("8,1,1] scale", "8,1] a").replace("8,1,1] bias", "8,1] b")
    model = graph(body, "float[N,8,5,6] x", initializers=f"{FOUR_GROUPS}, int64[3] flat = {{0,8,30}}, {affine}")
    assert fused(model, FUSE_CONTRIB_GROUP_NORM) == [1]
    assert ops(model) == {"GroupNorm": 1, "Reshape": 1}


def test_gamma_and_beta_are_float32_where_the_picture_is_float16() -> None:
    model = graph(GROUP_NORM.format(x="x") + SILU.format(y="y"), "float[2,8,5,6] x", initializers=FOUR_GROUPS)
    assert [step.applied for step in run(model, (half(), FUSE_CONTRIB_GROUP_NORM))][1] == 1
    assert ops(model) == {"Cast": 2, "GroupNorm": 1}
    (node,) = (each for each in model.graph if each.domain == DOMAIN)
    assert [value.dtype for value in (*node.inputs, *node.outputs)] == [ir.DataType.FLOAT16, *[ir.DataType.FLOAT] * 2, ir.DataType.FLOAT16]


@pytest.mark.parametrize(
    ("inputs", "groups", "sentence"),
    [
        ("float[N,8,5,6] x", 8, "the CUDA kernel takes an even number of channels in a group, at most 512, not 1"),
        ("float[N,8,30] x", 4, "the input is not known to be [batch, channels, height, width]"),
        ("double[N,8,5,6] x", 4, "the input is DOUBLE, and the kernel takes FLOAT and FLOAT16"),
    ],
)
def test_group_norms_that_are_left(inputs: str, groups: int, sentence: str) -> None:
    ones, zeros = (",".join([digit] * groups) for digit in "10")
    size = "8,1" if inputs.endswith("30] x") else "8,1,1"
    constants = f"int64[3] grouped = {{0,{groups},-1}}, float[{groups}] ones = {{{ones}}}, float[{groups}] zeros = {{{zeros}}}, {AFFINE}"
    constants = constants.replace("8,1,1", size)
    model = graph(GROUP_NORM.format(x="x") + "y = Neg(n)", inputs, "float[] y",
                  constants.replace("float", "double") if "double" in inputs else constants)  # fmt: skip
    assert [each.partition(": ")[2] for each in left(model, FUSE_CONTRIB_GROUP_NORM)] == [sentence]


ATTENTION = """
  qa = Reshape(q, apart) ka = Reshape(k, apart) va = Reshape(v, apart)
  qt = Transpose <perm=[0,2,1,3]> (qa) kt = Transpose <perm=[0,2,3,1]> (ka) vt = Transpose <perm=[0,2,1,3]> (va)
  qs = Mul(qt, factor) sc = MatMul(qs, kt) {mask} w = Softmax <axis=-1> ({scores}) o = MatMul(w, vt)
  ot = Transpose <perm=[0,2,1,3]> (o) y = Reshape(ot, joined)
"""
PLAIN = ATTENTION.format(mask="", scores="sc")
HEADS = "int64[4] apart = {0,0,2,4}, int64[3] joined = {0,0,8}, float factor = {0.5}"
BOTH = (FUSE_MULTI_HEAD_ATTENTION, PACK_ATTENTION)


def test_attention_of_three_inputs_is_not_packed() -> None:
    model = graph(PLAIN, "float[N,5,8] q, float[N,M,8] k, float[N,M,8] v", initializers=HEADS)
    assert fused(model, *BOTH) == [1, 0]
    assert ops(model) == {"MultiHeadAttention": 1}


def test_the_cpu_provider_runs_what_is_not_packed() -> None:
    model = graph(PLAIN, "float[N,5,8] q, float[N,M,8] k, float[N,M,8] v", initializers=HEADS)
    feeds = feed(model)
    (wanted,) = run_in_double(model, feeds)
    run(model, BOTH)
    np.testing.assert_allclose(run_in_runtime(model, feeds)[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("biased", [True, False])
def test_self_attention_is_packed(biased: bool) -> None:
    layers = " ".join(f"{each}p = MatMul(x, w{each}) {each} = Add({each}p, b{each})" if biased else f"{each} = MatMul(x, w{each})"
                      for each in "qkv")  # fmt: skip
    constants = ", ".join([HEADS, *(weights(f"w{each}", 6, 8) for each in "qkv"), *(weights(f"b{each}", 8) for each in "qkv" if biased)])
    model = graph(layers + PLAIN, "float[N,M,6] x", initializers=constants)
    assert fused(model, *BOTH) == [1, 1]
    assert ops(model) == {"MatMul": 1, "Reshape": 1, "MultiHeadAttention": 1, **({"Add": 1} if biased else {})}
    node = next(each for each in model.graph if each.domain == DOMAIN)
    assert [str(value.shape) for value in node.inputs if value] == ["[N,M,2,3,4]"]


def test_the_plan_counts_packed_attention() -> None:
    layers = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
    constants = ", ".join([HEADS, *(weights(f"w{each}", 6, 8) for each in "qkv")])
    model = graph(layers + PLAIN, "float[2,5,6] x", initializers=constants)
    run(model, BOTH)
    made = plan(model, "cuda")
    assert (made.taken, made.refusals) == (3, ())
    assert made.macs == (2 * 5 * 6 * 24 + 2 * 2 * 5 * 5 * 8,) * 2  # the packed product; q k' and the weights times v


@pytest.mark.parametrize(
    ("body", "inputs", "why"),
    [
        ("y = com.microsoft.BiasAdd(x, b, x)", "float[1,2,8] x, float[8] b", "it has 8 channels, not 320, 640 or 1280"),
        ("y = com.microsoft.GroupNorm <groups=8, activation=0> (x, b, b)", "float[1,2,2,8] x, float[8] b",
         "its groups have an odd number of channels, or more than 512"),
        ("y = com.microsoft.GroupNorm <groups=2, activation=0, channels_last=0> (x, b, b)", "float[1,8,2,4] x, float[8] b",
         "the channels are not its last axis"),
        ("y = com.microsoft.GroupNorm <groups=2, activation=0> (x, b, b)", "float16[1,2,2,8] x, float16[8] b",
         "gamma and beta are not float32"),
        ("y = com.microsoft.Inverse(x)", "float[2,2] x", "CUDA has no Inverse"),
        ("y = ArgMax(x)", "int32[2,2] x", "the first input is INT32"),
    ],
)  # fmt: skip
def test_what_the_plan_says_of_nodes_that_cuda_does_not_take(body: str, inputs: str, why: str) -> None:
    text = f'<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]> g ({inputs}) => (float[a] y) {{ {body} }}'
    (refusal,) = plan(ir.from_onnx_text(text), "cuda").refusals
    assert [fault.why for fault in refusal.faults] == [why]


def test_keys_and_values_of_one_tensor_are_packed() -> None:
    layers = "q = MatMul(x, wq) k = MatMul(z, wk) v = MatMul(z, wv)"
    constants = ", ".join([HEADS, weights("wq", 6, 8), weights("wk", 3, 8), weights("wv", 3, 8)])
    model = graph(layers + PLAIN, "float[N,5,6] x, float[N,M,3] z", initializers=constants)
    assert fused(model, *BOTH) == [1, 1]
    node = next(each for each in model.graph if each.domain == DOMAIN)
    assert [str(value.shape) for value in node.inputs if value] == ["[N,5,8]", "[N,M,2,2,4]"]


def test_the_columns_of_packed_weights_are_head_by_head() -> None:
    """A wrong order would be read back in the same wrong order by what stands in for the kernel: so here it is spelled out."""
    layers = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
    constants = ", ".join([HEADS, *(weights(f"w{each}", 6, 8) for each in "qkv")])
    model = graph(layers + PLAIN, "float[N,M,6] x", initializers=constants)
    parts = {each: model.graph.initializers[f"w{each}"].const_value.numpy() for each in "qkv"}  # type: ignore[union-attr]
    run(model, BOTH)
    packed = model.graph.initializers["wq.qkv"].const_value.numpy()  # type: ignore[union-attr]
    for head in range(2):
        for index, each in enumerate("qkv"):
            begin = (head * 3 + index) * 4
            np.testing.assert_array_equal(packed[:, begin : begin + 4], parts[each][:, head * 4 : head * 4 + 4])


@pytest.mark.parametrize("shape", ["1,1,M,M", "M,M", "N,2,M,M"])
def test_a_mask_becomes_the_attention_bias(shape: str) -> None:
    body = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)" + ATTENTION.format(mask="ms = Add(sc, mask)", scores="ms")
    constants = ", ".join([HEADS, *(weights(f"w{each}", 6, 8) for each in "qkv")])
    model = graph(body, f"float[N,M,6] x, float[{shape}] mask", initializers=constants)
    assert fused(model, *BOTH) == [1, 1]
    node = next(each for each in model.graph if each.domain == DOMAIN)
    assert [value is not None for value in node.inputs] == [True, False, False, False, False, True]


def test_a_mask_that_is_broadcast_is_left() -> None:
    body = ATTENTION.format(mask="ms = Add(sc, mask)", scores="ms")
    model = graph(body, "float[N,5,8] q, float[N,M,8] k, float[N,M,8] v, float[1,1,1,M] mask", initializers=HEADS)
    (reason,) = left(model, FUSE_MULTI_HEAD_ATTENTION)
    assert reason.endswith(": the mask is not known to be a number for every query and key")


def test_a_weight_of_two_layers_is_stored_once() -> None:
    layers = "q = MatMul(x, wq) k = MatMul(x, wq) v = MatMul(x, wv)"
    model = graph(layers + PLAIN, "float[N,M,6] x", initializers=", ".join([HEADS, weights("wq", 6, 8), weights("wv", 6, 8)]))
    run(model, (FUSE_MULTI_HEAD_ATTENTION,))
    (reason,) = left(model, PACK_ATTENTION)
    assert reason.endswith(": the weight of q, k or v is no matrix of its own")


GEGLU = "h = MatMul(x, w) s = Add(h, b) left, right = Split <axis=-1, num_outputs=2> (s) g = Gelu(right) y = Mul(left, g)"


def test_geglu_takes_its_bias_in() -> None:
    model = graph(GEGLU, "float[N,M,4] x", initializers=f"{weights('w', 4, 8)}, float[8] b = {EIGHT}")
    assert fused(model, fuse_bias_split_gelu()) == [1]
    assert ops(model) == {"MatMul": 1, "BiasSplitGelu": 1}


@pytest.mark.parametrize(
    ("rule", "body", "sentence"),
    [
        (fuse_bias_split_gelu(SPLIT), GEGLU, "the CUDA kernel takes 2560, 5120 or 10240 channels, not 8"),
        (
            fuse_bias_split_gelu(),
            GEGLU.replace("s = Add(h, b)", "s = Identity(h)"),
            "what is split is not [batch, tokens, channels] plus a bias",
        ),
        (
            fuse_bias_add(ADDED),
            "h = MatMul(x, w) s = Add(h, b) r = MatMul(x, w) y = Add(s, r)",
            "the CUDA kernel takes 320, 640 or 1280 channels, not 8",
        ),
    ],
)
def test_widths_that_are_left(rule: Pass, body: str, sentence: str) -> None:
    model = graph(body, "float[N,M,4] x", initializers=f"{weights('w', 4, 8)}, float[8] b = {EIGHT}")
    assert [each.partition(": ")[2] for each in left(model, rule)] == [sentence]


def test_a_plain_gelu_is_no_site_of_geglu() -> None:
    assert left(graph("y = Gelu(x)", "float[N,M,4] x"), fuse_bias_split_gelu()) == []


@pytest.mark.parametrize("body", ["y = Add(s, r)", "y = Add(r, s)"])
def test_bias_and_residual(body: str) -> None:
    model = graph(f"h = MatMul(x, w) s = Add(b, h) {body}", "float[N,M,4] x, float[N,M,8] r",
                  initializers=f"{weights('w', 4, 8)}, float[8] b = {EIGHT}")  # fmt: skip
    assert fused(model, fuse_bias_add()) == [1]
    assert ops(model) == {"MatMul": 1, "BiasAdd": 1}


@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm_of_a_sum_gives_the_sum_too(biased: bool) -> None:
    bias = "p = Add(h, b)" if biased else "p = Identity(h)"
    body = f"h = MatMul(x, w) {bias} s = Add(p, r) n = LayerNormalization <axis=-1> (s, g, b) y = Add(n, s)"
    model = graph(body, "float[N,M,4] x, float[N,M,8] r", initializers=f"{weights('w', 4, 8)}, {weights('g', 8)}, float[8] b = {EIGHT}")
    assert fused(model, FUSE_SKIP_LAYER_NORM) == [1]
    node = next(each for each in model.graph if each.domain == DOMAIN)
    assert len(node.inputs) == (5 if biased else 4)
    assert [bool(value.name) for value in node.outputs] == [True, False, False, True]


CONVOLUTIONS = ", ".join([weights("u", 8, 3, 3, 3), weights("v", 8, 8, 1, 1), f"float[8] b = {EIGHT}"])
NEAREST = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
PADDED = "pads=[1,1,1,1]"
# what stands between two convolutions, inputs beside x, further constants, transposes
BETWEEN = [
    ("d = Sigmoid(c)", "", "", 2),
    ("e = Sigmoid(c) d = Mul(c, e)", "", "", 2),
    ("d = Mul(c, f)", "", "float f = {0.5}", 2),
    ("d = Add(f, c)", "", f"float[8,1,1] f = {EIGHT}", 2),
    ("d = Add(c, f)", "", f"float[1,8,1,1] f = {EIGHT}", 2),
    ("d = Add(c, f)", ", float[N,8,1,1] f", "", 2),
    ("g = Unsqueeze(f, axes) d = Add(c, g)", ", float[N,8] f", "int64[2] axes = {2,3}", 2),
    ("d = Add(c, f)", ", float[N,8,M,6] f", "", 3),
    ("e = Concat <axis=1> (c, c) d, z = Split <axis=1, num_outputs=2> (e)", "", "", 4),  # Split keeps to the channels in the middle
    (f'd = Resize <{NEAREST}> (c, "", f)', "", "float[4] f = {1,1,2,2}", 2),
    (f'd = Resize <{NEAREST}> (c, "", "", f)', "", "int64[4] f = {3,8,10,12}", 2),
    ("s = Shape(c) two = Mul(s, f) d = Resize <" + NEAREST + '> (c, "", "", two)', "", "int64[4] f = {1,1,2,2}", 2),
    ("e = Reshape(c, f) d = Reshape(e, g)", "", "int64[3] f = {0,8,-1}, int64[4] g = {0,0,5,6}", 2),
    ("t = Transpose <perm=[0,2,3,1]> (c) e = Relu(t) d = Transpose <perm=[0,3,1,2]> (e)", "", "", 2),
    ("e = Reshape(c, f) t = Transpose <perm=[0,2,1]> (e) h = Softmax(t) k = Transpose <perm=[0,2,1]> (h) d = Reshape(k, g)", "",
     "int64[3] f = {0,8,-1}, int64[4] g = {0,8,5,6}", 2),
]  # fmt: skip


@pytest.mark.parametrize(("between", "inputs", "constants", "transposes"), BETWEEN)
def test_channels_stay_last_between_convolutions(between: str, inputs: str, constants: str, transposes: int) -> None:
    body = f"c = Conv <{PADDED}> (x, u, b) {between} y = Conv(d, v, b)"
    model = graph(body, f"float[N,3,M,6] x{inputs}", initializers=", ".join(filter(None, [CONVOLUTIONS, constants])))
    fused(model, CHANNELS_LAST)
    assert (domains(model)["NhwcConv"], ops(model).get("Transpose", 0)) == (2, transposes)


def test_a_picture_that_others_read_is_turned_back_once() -> None:
    body = f"c = Conv <{PADDED}> (x, u, b) y = Conv(c, v, b) z = Softmax <axis=1> (c) s = ReduceMax <keepdims=0> (c)"
    model = graph(body, "float[N,3,5,6] x", "float[] y, float[] z, float[] s", CONVOLUTIONS)
    fused(model, CHANNELS_LAST)
    assert ops(model) == {"NhwcConv": 2, "Transpose": 3, "Softmax": 1, "ReduceMax": 1}


@pytest.mark.parametrize("form", ["w", "z"])
def test_convolutions_that_are_left(form: str) -> None:
    """With a weight that is computed, or in groups."""
    body = "y = Conv <group=3> (x, w)" if form == "w" else "y = Conv(x, z)"
    model = graph(body, "float[N,3,5,6] x, float[8,3,3,3] z", initializers=weights("w", 3, 1, 3, 3))
    assert fused(model, CHANNELS_LAST) == [0]


BLOCK = f"c = Conv <{PADDED}> (x, u, b) {{sum}} " + GROUP_NORM.format(x="a") + SILU.format(y="d") + " y = Conv(d, v, b) {more}"
NORMS = (FUSE_CONTRIB_GROUP_NORM, CHANNELS_LAST, FUSE_SKIP_GROUP_NORM)
LINEAR = "l = MatMul(h, w) lb = Add(l, b) lr = Reshape(lb, picture) lt = Transpose <perm=[0,3,1,2]> (lr) a = Add(lt, c)"
# the sum that is normalized, what reads it, inputs beside x, shapes of the fused node's inputs, transposes
SUMS = [
    ("a = Add(c, e)", "", ", float[N,8,5,6] e", ["[N,5,6,8]", "[8]", "[8]", "[N,5,6,8]"], 3),
    ("a = Add(c, e)", "z = Relu(a)", ", float[N,8,5,6] e", ["[N,5,6,8]", "[8]", "[8]", "[N,5,6,8]"], 4),
    ("g = Unsqueeze(e, axes) a = Add(g, c)", "", ", float[N,8] e", ["[N,5,6,8]", "[8]", "[8]", "[N,1,1,8]"], 2),
    (LINEAR, "", ", float[N,30,4] h", ["[N,5,6,8]", "[8]", "[8]", "[N,5,6,8]", "[8]"], 2),
]


@pytest.mark.parametrize(("total", "more", "inputs", "shapes", "transposes"), SUMS)
def test_group_norm_of_a_sum(total: str, more: str, inputs: str, shapes: list[str], transposes: int) -> None:
    constants = ", ".join([CONVOLUTIONS, FOUR_GROUPS, weights("w", 4, 8), "int64[2] axes = {2,3}, int64[4] picture = {0,5,6,8}"])
    outputs = "float[] y, float[] z" if more else "float[] y"
    model = graph(BLOCK.format(sum=total, more=more), f"float[N,3,5,6] x{inputs}", outputs, constants)
    assert fused(model, *NORMS)[::2] == [1, 1]
    (node,) = (each for each in model.graph if each.op_type == "SkipGroupNorm")
    assert [str(value.shape) for value in node.inputs if value] == shapes
    assert (len(node.outputs), ops(model)["Transpose"]) == (2 if more else 1, transposes)


def test_a_sum_with_what_belongs_to_no_picture_of_its_own_is_left() -> None:
    body = BLOCK.format(sum="g = Unsqueeze(e, axes) a = Add(g, c)", more="")
    constants = ", ".join([CONVOLUTIONS, FOUR_GROUPS, "int64[2] axes = {2,3}"])
    model = graph(body, "float[N,3,5,6] x, float[1,8] e", initializers=constants)
    run(model, NORMS[:2])
    sentence = "the operands of the sum are not known to be of one shape, or one of them [batch, 1, 1, channels]"
    assert [each.partition(": ")[2] for each in left(model, FUSE_SKIP_GROUP_NORM)] == [sentence]


def hold_against_torch(model: ir.Model, graph: Traced, decibels: float) -> None:
    expand(model)
    inputs, expected = graph.arrays()
    (got,) = run_in_runtime(model, inputs)
    noise = np.sum((got.astype(np.float64) - expected) ** 2)
    assert 10 * np.log10(np.sum(expected.astype(np.float64) ** 2) / noise) > decibels


# every width of the kernels, as the small networks have other ones
ANY_WIDTH = {"fuse bias, split and GELU": fuse_bias_split_gelu(), "fuse bias and residual": fuse_bias_add()}
FREE = tuple(ANY_WIDTH.get(each.name, each) for each in CUDA)
# architecture, exporter, opset, (group norms, attentions, GEGLUs), transposes
NETWORKS = [
    ("unet", "dynamic", 20, (61, 32, 16), 2),
    ("vae_decoder", "dynamic", 20, (30, 1, 0), 2),
    ("vae_encoder", "static", 20, (22, 1, 0), 2),
    ("vit-l", "dynamic", 20, (0, 12, 0), 0),
    ("vae_decoder", "torchscript", 17, (30, 1, 0), 2),
]


@pytest.mark.parametrize(("architecture", "exporter", "opset", "sites", "transposes"), NETWORKS)
def test_every_site_of_a_network(
    traced: Callable[..., Traced], architecture: str, exporter: str, opset: int, sites: tuple[int, int, int], transposes: int
) -> None:
    graph = traced(architecture, exporter, opset)
    model = graph.model()
    steps = {step.name: step for step in run(model, FREE)}
    found = domains(model)
    assert (found["GroupNorm"] + found["SkipGroupNorm"], found["MultiHeadAttention"], found["BiasSplitGelu"]) == sites
    assert (steps["pack attention"].applied, ops(model).get("Transpose", 0)) == (sites[1], transposes)
    assert not {"Conv", "InstanceNormalization", "Softmax", "Gelu"} & set(ops(model))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    hold_against_torch(model, graph, 100)


def test_a_network_in_float16(traced: Callable[..., Traced]) -> None:
    graph = traced("unet", "dynamic")
    model = graph.model()
    run(model, (*FREE, half(), NAME_NODES))
    norms = [node for node in model.graph if node.op_type in ("GroupNorm", "SkipGroupNorm")]
    assert len(norms) == 61
    for node in norms:
        types = [value.dtype for value in node.inputs if value is not None]
        assert (types[0], *types[3:]) == (ir.DataType.FLOAT16,) * (len(types) - 2)
        assert types[1:3] == [ir.DataType.FLOAT] * 2
    hold_against_torch(model, graph, 45)


@pytest.mark.parametrize(("op_type", "attribute", "value"), [("SkipGroupNorm", "activation", 0), ("MultiHeadAttention", "scale", 1.0)])
def test_a_fault_is_seen(traced: Callable[..., Traced], op_type: str, attribute: str, value: float) -> None:
    graph = traced("vae_decoder", "dynamic")
    model = graph.model()
    run(model, CUDA)
    node = next(each for each in model.graph if each.op_type == op_type and each.attributes[attribute].value != value)
    node.attributes[attribute] = ir.convenience.convert_attribute(attribute, value)
    with pytest.raises(AssertionError):
        hold_against_torch(model, graph, 100)
