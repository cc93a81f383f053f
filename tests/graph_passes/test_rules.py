"""Every rule on the smallest graph that it is for, and on near misses, with the reason of its refusal."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import test_lowering
from graphs import applied, copy, feed, graph, ops, run_in_double

import graph_passes.rules
from graph_passes import pipelines, precision
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.rule import Refused, Rule, apply, replace
from graph_passes.rules.compose_casts import COMPOSE_CASTS
from graph_passes.rules.compose_reshapes import COMPOSE_RESHAPES
from graph_passes.rules.compose_transposes import COMPOSE_TRANSPOSES
from graph_passes.rules.compose_unsqueezes import COMPOSE_UNSQUEEZES
from graph_passes.rules.einsum_as_product import EINSUM_AS_PRODUCT
from graph_passes.rules.fix_cast_target import FIX_CAST_TARGET
from graph_passes.rules.fix_reshape_target import FIX_RESHAPE_TARGET
from graph_passes.rules.fold_pad import FOLD_PAD
from graph_passes.rules.multiply_tokens import MULTIPLY_TOKENS
from graph_passes.rules.remove_cast import REMOVE_CAST
from graph_passes.rules.remove_concat import REMOVE_CONCAT
from graph_passes.rules.remove_dropout import REMOVE_DROPOUT
from graph_passes.rules.remove_expand import REMOVE_EXPAND
from graph_passes.rules.remove_identity import REMOVE_IDENTITY
from graph_passes.rules.remove_nan_guard import REMOVE_NAN_GUARD
from graph_passes.rules.remove_neutral_operand import REMOVE_NEUTRAL_OPERAND
from graph_passes.rules.remove_reshape import REMOVE_RESHAPE
from graph_passes.rules.remove_slice import REMOVE_SLICE
from graph_passes.rules.remove_transpose import REMOVE_TRANSPOSE
from graph_passes.rules.sink_expand import SINK_EXPAND
from graph_passes.rules.slice_concat import SLICE_CONCAT
from graph_passes.rules.split_sequence import SPLIT_SEQUENCE
from graph_passes.rules.unfold_transpose import UNFOLD_TRANSPOSE

NO_MASK = "k = Transpose <perm=[0,2,1]> (x) s = MatMul(x, k)"
GUARD = "p = Softmax <axis=-1> (s) n = IsNaN(p) w = Where(n, zero, p) y = Relu(w)"

# rule, body, inputs, initializers, how often it applies, the operators that are left
FIRES = [
    (REMOVE_IDENTITY, "a = Identity(x) b = Identity(a) y = Relu(b)", "float[N,4] x", "", 2, {"Relu": 1}),
    (REMOVE_IDENTITY, "a = Relu(x) y = Identity(a)", "float[N,4] x", "", 1, {"Relu": 1}),
    (REMOVE_DROPOUT, "a = Dropout(x) y = Relu(a)", "float[N,4] x", "", 1, {"Relu": 1}),
    (REMOVE_DROPOUT, "a = Dropout(x, r, t) y = Relu(a)", "float[N,4] x", "float r = {0.5}, bool t = {0}", 1, {"Relu": 1}),
    (
        EINSUM_AS_PRODUCT,
        'y = Einsum <equation="b i d, b j d -> b i j"> (x, z)',
        "float[N,4,6] x, float[N,5,6] z",
        "",
        1,
        {"MatMul": 1, "Transpose": 1},
    ),
    (EINSUM_AS_PRODUCT, 'y = Einsum <equation="nhij,nhjd->nhid"> (x, z)', "float[N,2,4,6] x, float[N,2,6,3] z", "", 1, {"MatMul": 1}),
    (FIX_CAST_TARGET, "a = CastLike(n, x) y = Mul(a, x)", "float[N,4] x, int64[N,4] n", "", 1, {"Cast": 1, "Mul": 1}),
    (REMOVE_CAST, "a = Cast <to=1> (x) y = Relu(a)", "float[N,4] x", "", 1, {"Relu": 1}),
    (COMPOSE_CASTS, "a = Cast <to=7> (x) y = Cast <to=1> (a)", "int32[N] x", "", 1, {"Cast": 1}),
    (COMPOSE_CASTS, "a = Cast <to=1> (x) b = Cast <to=11> (a) y = Cast <to=7> (b)", "float16[N] x", "", 2, {"Cast": 1}),
    (COMPOSE_CASTS, "a = Cast <to=9> (x) y = Cast <to=7> (a)", "bool[N] x", "", 1, {"Cast": 1}),
    (REMOVE_RESHAPE, "a = Reshape(x, s) y = Relu(a)", "float[2,6] x", "int64[2] s = {2, -1}", 1, {"Relu": 1}),
    (REMOVE_RESHAPE, "s = Shape(x) a = Reshape(x, s) y = Relu(a)", "float[N,6] x", "", 1, {"Relu": 1}),
    (REMOVE_RESHAPE, "a = Squeeze(x, s) b = Unsqueeze(a, s) y = Relu(b)", "float[1,N] x", "int64[1] s = {0}", 1, {"Relu": 1}),
    (
        REMOVE_RESHAPE,
        "a = Reshape(x, s) b = Flatten <axis=0> (a) c = Reshape(b, t) y = Relu(c)",
        "float[2,6] x",
        "int64[2] s = {3, 4}, int64[2] t = {2, 6}",
        1,
        {"Relu": 1},
    ),
    (COMPOSE_RESHAPES, "a = Reshape(x, s) y = Reshape(a, t)", "float[2,6] x", "int64[2] s = {3, 4}, int64[1] t = {12}", 1, {"Reshape": 1}),
    (
        COMPOSE_RESHAPES,
        "a = Reshape(x, s) y = Reshape(a, t)",
        "float[N,6] x",
        "int64[3] s = {0, 2, 3}, int64[2] t = {0, 6}",
        1,
        {"Reshape": 1},
    ),
    (COMPOSE_RESHAPES, "a = Unsqueeze(x, s) y = Reshape(a, t)", "float[N,6] x", "int64[1] s = {0}, int64[1] t = {-1}", 1, {"Reshape": 1}),
    (
        COMPOSE_UNSQUEEZES,
        "a = Unsqueeze(x, s) b = Unsqueeze(a, t) y = Unsqueeze(b, u)",
        "float[N,6] x",
        "int64[1] s = {1}, int64[1] t = {0}, int64[2] u = {-1, 2}",
        2,
        {"Unsqueeze": 1},
    ),
    (REMOVE_TRANSPOSE, "a = Transpose <perm=[0,1,2]> (x) y = Relu(a)", "float[N,6,2] x", "", 1, {"Relu": 1}),
    (
        COMPOSE_TRANSPOSES,
        "a = Transpose <perm=[1,2,0]> (x) b = Transpose <perm=[0,2,1]> (a) y = Transpose <perm=[2,0,1]> (b)",
        "float[N,6,2] x",
        "",
        2,
        {"Transpose": 1},
    ),
    (
        UNFOLD_TRANSPOSE,
        "a = Reshape(x, s) b = Transpose <perm=[0,2,1]> (a) y = Reshape(b, t)",
        "float[2,3,4,5] x",
        "int64[3] s = {-1, 4, 5}, int64[4] t = {2, 3, 5, 4}",
        1,
        {"Transpose": 1},
    ),
    (
        UNFOLD_TRANSPOSE,
        "z = Shape(x) d = Slice(z, m1, big) n = Slice(z, m2, m1) l = Slice(z, small, m2) s = Concat <axis=0> (m1, n, d) a = Reshape(x, s) "
        "b = Transpose <perm=[0,2,1]> (a) t = Concat <axis=0> (l, d, n) y = Reshape(b, t)",
        "float[N,2,M,5] x",
        "int64[1] m1 = {-1}, int64[1] m2 = {-2}, int64[1] big = {9223372036854775807}, int64[1] small = {-9223372036854775807}",
        1,
        {"Transpose": 1},
    ),
    (
        FIX_RESHAPE_TARGET,
        "z = Shape(x) b = Slice(z, i, j) t = Concat <axis=0> (b, s) y = Reshape(x, t)",
        "float[N,12] x",
        "int64[1] i = {0}, int64[1] j = {1}, int64[2] s = {3, 4}",
        1,
        {"Reshape": 1},
    ),
    (
        FIX_RESHAPE_TARGET,
        "z = Shape(x) b = Gather(z, i) c = Unsqueeze(b, i1) t = Concat <axis=0> (c, s) y = Reshape(x, t)",
        "float[N,M,12] x",
        "int64 i = {0}, int64[1] i1 = {0}, int64[2] s = {-1, 4}",
        1,
        {"Reshape": 1},
    ),
    (
        REMOVE_SLICE,
        "a = Slice(x, s, e, i) y = Relu(a)",
        "float[N,6] x",
        "int64[1] s = {0}, int64[1] e = {6}, int64[1] i = {1}",
        1,
        {"Relu": 1},
    ),
    (
        REMOVE_SLICE,
        "a = Slice(x, s, e) y = Relu(a)",
        "float[N,6] x",
        "int64[1] s = {0}, int64[1] e = {9223372036854775807}",
        1,
        {"Relu": 1},
    ),
    (REMOVE_SLICE, "z = Shape <end=1> (x) a = Slice(x, s, z) y = Relu(a)", "float[N,6] x", "int64[1] s = {0}", 1, {"Relu": 1}),
    (REMOVE_CONCAT, "a = Concat <axis=1> (x) y = Relu(a)", "float[N,6] x", "", 1, {"Relu": 1}),
    (
        SLICE_CONCAT,
        "c = Concat <axis=-1> (a, b) p = Slice(c, four, big, one, one) q = Slice(c, zero, four, one, one) y = Concat <axis=-1> (p, q)",
        "float[N,4] a, float[N,3] b",
        "int64[1] zero = {0}, int64[1] one = {1}, int64[1] four = {4}, int64[1] big = {9223372036854775807}",
        2,
        {"Concat": 1},
    ),
    (
        SPLIT_SEQUENCE,
        "s = SplitToSequence <axis=1> (x, n) a = SequenceAt(s, i) b = SequenceAt(s, j) y = Mul(a, b)",
        "float[N,6] x",
        "int64 n = {3}, int64 i = {0}, int64 j = {-1}",
        2,
        {"Split": 2, "Mul": 1},
    ),
    (
        FOLD_PAD,
        "a = Pad(x, p) y = Conv <pads=[1,0,0,0], strides=[2,2]> (a, w)",
        "float[N,1,6,6] x, float[2,1,3,3] w",
        "int64[8] p = {0, 0, 0, 0, 0, 0, 1, 2}",
        1,
        {"Conv": 1},
    ),
    (
        FOLD_PAD,
        "a = Pad(x, p, v) y = Conv(a, w)",
        "float[N,1,6,6] x, float[2,1,3,3] w",
        "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float v = {0}",
        1,
        {"Conv": 1},
    ),
    (
        REMOVE_NEUTRAL_OPERAND,
        "a = Mul(x, one) b = Add(zero, a) c = Sub(b, zero) d = Div(c, one) y = Relu(d)",
        "float[N,6] x",
        "float one = {1}, float[1] zero = {0}",
        4,
        {"Relu": 1},
    ),
    (
        REMOVE_NAN_GUARD,
        f"{NO_MASK} {GUARD}",
        "float[N,4,6] x",
        "float zero = {0}",
        1,
        {"Transpose": 1, "MatMul": 1, "Softmax": 1, "Relu": 1},
    ),
    (
        REMOVE_NAN_GUARD,
        f"k = Transpose <perm=[0,2,1]> (x) q = MatMul(x, k) m = Where(c, zero, low) s = Add(q, m) {GUARD}",
        "float[N,4,6] x, bool[4,4] c",
        "float zero = {0}, float low = {-3.4e38}",
        1,
        {"Transpose": 1, "MatMul": 1, "Where": 1, "Add": 1, "Softmax": 1, "Relu": 1},
    ),
    (
        SINK_EXPAND,
        "e = Expand(c, s) y = Where(e, a, b)",
        "bool[1,4] c",
        "int64[2] s = {3, 4}, float a = {1}, float b = {2}",
        1,
        {"Where": 1, "Expand": 1},
    ),
    (REMOVE_EXPAND, "s = Shape(x) a = Expand(x, s) y = Relu(a)", "float[N,6] x", "", 1, {"Relu": 1}),
    (REMOVE_EXPAND, "a = Expand(x, s) y = Relu(a)", "float[N,6] x", "int64[2] s = {1, 6}", 1, {"Relu": 1}),
    (REMOVE_EXPAND, "s = Shape(x) a = Expand(b, s) c = Add(x, a) y = Relu(c)", "float[N,6] x, float[1,6] b", "", 1, {"Add": 1, "Relu": 1}),
]

# rule, body, inputs, initializers, reason
REFUSES = [
    (REMOVE_IDENTITY, "y = Identity(x)", "float[N,4] x", "", "an output of the graph needs a node of its own"),
    (REMOVE_DROPOUT, "y = Dropout(x, r, t)", "float[N,4] x", "float r = {0.0}, bool t = {1}", "the node may be in training mode"),
    (REMOVE_DROPOUT, "a, m = Dropout(x) b = Cast <to=1> (m) y = Add(a, b)", "float[N,4] x", "", "another output of the node is used"),
    (REMOVE_CAST, "y = Cast <to=7> (x)", "float[N,4] x", "", "the cast changes the type"),
    (COMPOSE_CASTS, "a = Cast <to=7> (x) y = Cast <to=1> (a)", "float[N] x", "", "the inner cast loses something"),
    (COMPOSE_CASTS, "a = Cast <to=1> (x) y = Cast <to=7> (a)", "int64[N] x", "", "the inner cast loses something"),
    (COMPOSE_CASTS, "a = Relu(x) y = Cast <to=7> (a)", "float[N] x", "", "the input is no cast"),
    (
        REMOVE_RESHAPE,
        "y = Reshape(x, s)",
        "float[2,6] x",
        "int64[2] s = {6, 2}",
        "nothing before it is known to have the shape that it makes",
    ),
    (REMOVE_RESHAPE, "y = Reshape(x, s)", "float[2,6] x, int64[2] s", "", "nothing before it is known to have the shape that it makes"),
    (
        COMPOSE_RESHAPES,
        "a = Reshape(x, s) y = Reshape(a, t)",
        "float[2,6] x",
        "int64[2] s = {3, 4}, int64[2] t = {0, 4}",
        "a zero of the target copies a size that the inner reshape makes",
    ),
    (COMPOSE_RESHAPES, "a = Relu(x) y = Reshape(a, t)", "float[2,6] x", "int64[1] t = {12}", "the input is no reshape"),
    (COMPOSE_UNSQUEEZES, "a = Squeeze(x, s) y = Unsqueeze(a, s)", "float[1,6] x", "int64[1] s = {0}", "the input is no Unsqueeze"),
    (
        COMPOSE_UNSQUEEZES,
        "a = Unsqueeze(x, s) y = Unsqueeze(a, t)",
        "float[2,6] x, int64[1] s",
        "int64[1] t = {0}",
        "the axes or the rank are only known at run time",
    ),
    (REMOVE_TRANSPOSE, "y = Transpose <perm=[1,0]> (x)", "float[N,6] x", "", "the order of the axes changes"),
    (
        COMPOSE_TRANSPOSES,
        "a = Transpose(x) y = Transpose <perm=[1,0]> (a)",
        "float[N,6] x",
        "",
        "a Transpose that reverses all axes is left alone",
    ),
    (
        UNFOLD_TRANSPOSE,
        "a = Reshape(x, s) b = Transpose <perm=[1,0,2]> (a) y = Reshape(b, t)",
        "float[2,3,4,5] x",
        "int64[3] s = {6, 4, 5}, int64[4] t = {2, 3, 5, 4}",
        "the input is no Transpose of the last two of three axes",
    ),
    (
        UNFOLD_TRANSPOSE,
        "a = Reshape(x, s) b = Transpose <perm=[0,2,1]> (a) y = Reshape(b, t)",
        "float[2,3,4,5] x",
        "int64[3] s = {6, 5, 4}, int64[4] t = {2, 3, 4, 5}",
        "the first Reshape does more than to fold the leading axes",
    ),
    (
        UNFOLD_TRANSPOSE,
        "a = Reshape(x, s) b = Transpose <perm=[0,2,1]> (a) y = Reshape(b, t)",
        "float[2,3,4,5] x",
        "int64[3] s = {6, 4, 5}, int64[4] t = {3, 2, 5, 4}",
        "the second Reshape does more than to unfold the leading axes",
    ),
    (FIX_RESHAPE_TARGET, "y = Reshape(x, t)", "float[N,12] x", "int64[3] t = {0, 3, 4}", "the target is a constant already"),
    (
        FIX_RESHAPE_TARGET,
        "z = Shape(b) y = Reshape(x, z)",
        "float[12] x, float[N,M] b",
        "",
        "more than one size is new and only known at run time",
    ),
    (REMOVE_SLICE, "y = Slice(x, s, e)", "float[6] x", "int64[1] s = {0}, int64[1] e = {5}", "the slice may leave out the last elements"),
    (REMOVE_SLICE, "y = Slice(x, s, e)", "float[N] x", "int64[1] s = {0}, int64[1] e = {100}", "the slice may leave out the last elements"),
    (
        REMOVE_SLICE,
        "y = Slice(x, s, e)",
        "float[6] x",
        "int64[1] s = {1}, int64[1] e = {6}",
        "the slice does not start at the first element, or has steps",
    ),
    (REMOVE_CONCAT, "y = Concat <axis=0> (x, x)", "float[N] x", "", "several tensors are joined"),
    (
        SLICE_CONCAT,
        "c = Concat <axis=0> (a, b) y = Slice(c, s, e, i)",
        "float[4] a, float[3] b",
        "int64[1] s = {1}, int64[1] e = {4}, int64[1] i = {0}",
        "the slice cuts through a part, or holds several",
    ),
    (
        SLICE_CONCAT,
        "c = Concat <axis=0> (a, b) y = Slice(c, s, e, i)",
        "float[N] a, float[3] b",
        "int64[1] s = {0}, int64[1] e = {3}, int64[1] i = {0}",
        "the length of a part is only known at run time",
    ),
    (
        SLICE_CONCAT,
        "c = Concat <axis=0> (a, b) y = Slice(c, s, e, i)",
        "float[3,2] a, float[3,2] b",
        "int64[1] s = {0}, int64[1] e = {3}, int64[1] i = {1}",
        "the slice is not along the axis that was joined, or has steps",
    ),
    (
        SPLIT_SEQUENCE,
        "s = SplitToSequence <axis=0> (x, n) y = SequenceAt(s, i)",
        "float[N,6] x",
        "int64 n = {3}, int64 i = {0}",
        "the number of parts is only known at run time",
    ),
    (
        SPLIT_SEQUENCE,
        "s = SequenceConstruct(x, x) y = SequenceAt(s, i)",
        "float[N,6] x",
        "int64 i = {0}",
        "the sequence is not made by SplitToSequence",
    ),
    (
        FOLD_PAD,
        'a = Pad <mode="reflect"> (x, p) y = Conv(a, w)',
        "float[N,1,6,6] x, float[2,1,3,3] w",
        "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}",
        "the padding repeats what is inside",
    ),
    (
        FOLD_PAD,
        "a = Pad(x, p, v) y = Conv(a, w)",
        "float[N,1,6,6] x, float[2,1,3,3] w",
        "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float v = {1}",
        "the padding is not known to be zero",
    ),
    (
        FOLD_PAD,
        "a = Pad(x, p) y = Conv(a, w)",
        "float[N,1,6,6] x, float[2,2,3,3] w",
        "int64[8] p = {0, 1, 0, 0, 0, 0, 0, 0}",
        "the padding crops, or is not of the spatial axes alone",
    ),
    (
        FOLD_PAD,
        'a = Pad(x, p) y = Conv <auto_pad="SAME_UPPER"> (a, w)',
        "float[N,1,6,6] x, float[2,1,3,3] w",
        "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}",
        "the convolution chooses its padding itself",
    ),
    *(
        (EINSUM_AS_PRODUCT, f'y = Einsum <equation="{equation}"> (x, z)', "float[N,6,6] x, float[N,6,6] z", "", reason)
        for reason, equations in {
            "it is not of two tensors, each axis named once": ("bij,bjk", "bii,bik->bik", "...ij,...jk->...ik"),
            "it is not a product of matrices that are the last two axes": ("bij,bij->bi", "bij,bjk->bki", "bji,bjk->bik", "bij,bij->bij"),
        }.items()
        for equation in equations
    ),
    (EINSUM_AS_PRODUCT, 'y = Einsum <equation="ij->ji"> (x)', "float[N,6] x", "", "it is not of two tensors, each axis named once"),
    (REMOVE_NEUTRAL_OPERAND, "y = Mul(x, c)", "float[N,6] x", "float c = {1.0000001}", "no operand is the neutral element"),
    (REMOVE_NEUTRAL_OPERAND, "y = Sub(c, x)", "float[N,6] x", "float c = {0}", "no operand is the neutral element"),
    (REMOVE_NEUTRAL_OPERAND, "y = Mul(x, c)", "float[6] x", "float[1,1] c = {1}", "the constant may add axes"),
    (
        REMOVE_NAN_GUARD,
        f"k = Transpose <perm=[0,2,1]> (x) q = MatMul(x, k) m = Where(c, zero, low) s = Add(q, m) {GUARD}",
        "float[N,4,6] x, bool[4,4] c",
        "float zero = {0}, float low = {-inf}",
        "the mask may hide a whole row",
    ),
    (
        REMOVE_NAN_GUARD,
        f"k = Transpose <perm=[0,2,1]> (x) q = MatMul(x, k) s = Add(q, m) {GUARD}",
        "float[N,4,6] x, float[4,4] m",
        "float zero = {0}",
        "the mask may hide a whole row",
    ),
    (REMOVE_NAN_GUARD, "n = IsNaN(x) y = Where(n, zero, x)", "float[N,4] x", "float zero = {0}", "this is no guard of a Softmax"),
    (REMOVE_NAN_GUARD, f"{NO_MASK} {GUARD}", "float[N,4,6] x", "float zero = {1}", "NaN becomes another number than zero"),
    (
        SINK_EXPAND,
        "e = Expand(c, s) y = Where(e, a, b)",
        "bool[1,4] c, float[3,4] a",
        "int64[2] s = {3, 4}, float b = {2}",
        "a choice is no scalar constant",
    ),
    (SINK_EXPAND, "y = Where(c, a, b)", "bool[1,4] c", "float a = {1}, float b = {2}", "the condition is not expanded"),
    (REMOVE_EXPAND, "a = Expand(x, s) y = Relu(a)", "float[1,6] x", "int64[2] s = {3, 6}", "the tensor grows, and what uses it needs that"),
    (
        REMOVE_EXPAND,
        "a = Expand(x, s) y = Add(a, b)",
        "float[1,6] x, float[1,6] b",
        "int64[2] s = {3, 6}",
        "the tensor grows, and what uses it needs that",
    ),
]


def name(case: object) -> str | None:
    return case.name.replace(" ", "_") if isinstance(case, Rule) else ""


@pytest.mark.parametrize(("rule", "body", "inputs", "initializers", "count", "left"), FIRES, ids=name)
def test_a_rule_fires(rule: Rule, body: str, inputs: str, initializers: str, count: int, left: dict[str, int]) -> None:
    model = graph(body, inputs, outputs=_output(body), initializers=initializers)
    assert applied(model, rule.as_pass(), REMOVE_UNUSED)[0] == count
    assert ops(model) == left
    assert applied(model, INFER_SHAPES, rule.as_pass())[1] == 0  # nothing is left for it


@pytest.mark.parametrize(("rule", "body", "inputs", "initializers", "reason"), REFUSES, ids=name)
def test_a_rule_refuses(rule: Rule, body: str, inputs: str, initializers: str, reason: str) -> None:
    model = graph(body, inputs, outputs=_output(body), initializers=initializers)
    before = ir.to_proto(model).SerializeToString()
    node = [node for node in model.graph if node.op_type in rule.op_types][-1]
    with pytest.raises(Refused, match=f"^{re.escape(reason)}$"):
        # the last check is made when the node is replaced, for all rules alike
        replace(node, rule.rewrite(node))
    assert apply(rule, model) == 0
    assert ir.to_proto(model).SerializeToString() == before


def _output(body: str) -> str:
    """The output `y` with the type that the last node gives it."""
    last = body.rsplit(" y = ", 1)[-1]
    return f"{'int64' if '<to=7>' in last else 'float'}[] y"


def test_every_rule_fires_refuses_and_is_in_a_pipeline() -> None:
    asked_for = {"unfold_winograd"}  # with a tile, and not by a target
    files = {path.stem for path in Path(graph_passes.rules.__file__).parent.glob("*.py")} - {"__init__", *asked_for}
    known = {value.name for module in (pipelines, precision) for value in vars(module).values() if isinstance(value, Rule)}
    assert len(known) == len(files)
    used = (*pipelines.TARGETS.values(), precision.lowered("a16w8", "qnn", None))
    assert {each.name for passes in used for each in passes} >= known
    elsewhere = {MULTIPLY_TOKENS.name, *(rule.name for rule, *_ in test_lowering.FIRES)}  # in test_multiply_tokens, test_lowering
    rules = known - elsewhere
    assert {rule.name for rule, *_ in FIRES} == rules
    always = {FIX_CAST_TARGET.name}  # refuses only what has no type at all, which no valid graph leaves after inference
    assert {rule.name for rule, *_ in REFUSES} == rules - always


def test_a_rule_keeps_the_name_and_shape_of_an_output() -> None:
    model = graph("a = Relu(x) b = Transpose <perm=[0,1]> (a) y = Identity(b)", "float[N,6] x")
    model.graph.outputs[0].shape = ir.Shape(["batch", 6])
    assert applied(model, REMOVE_IDENTITY.as_pass(), REMOVE_TRANSPOSE.as_pass()) == [1, 1]
    (output,) = model.graph.outputs
    assert (output.name, str(output.shape)) == ("y", "[batch,6]")


def test_names_of_an_outputs_dimensions_prove_nothing() -> None:
    # torch's TorchScript exporter may call two sizes of an output by one name, and users call 8 x height height
    model = graph("a = Transpose <perm=[1,0]> (x) y = Reshape(a, s)", "float[N,M] x, int64[2] s")
    model.graph.outputs[0].shape = ir.Shape(["M", "N"])
    node = next(node for node in model.graph if node.op_type == "Reshape")
    with pytest.raises(Refused, match="nothing before it is known to have the shape"):
        REMOVE_RESHAPE.rewrite(node)


def test_two_outputs_never_become_one_value() -> None:
    model = graph("y = Relu(x) z = Identity(y)", "float[N,6] x", outputs="float[] y, float[] z")
    assert applied(model, REMOVE_IDENTITY.as_pass()) == [0]


def test_a_rule_reaches_into_subgraphs() -> None:
    model = graph(
        "y = If(c) <then_branch = t () => (float[N,6] p) { a = Identity(x) p = Relu(a) }, "
        "else_branch = e () => (float[N,6] q) { q = Neg(x) }>",
        "bool c, float[N,6] x",
    )
    before = copy(model)
    assert applied(model, REMOVE_IDENTITY.as_pass()) == [1]
    for condition in (True, False):
        feeds = {**feed(before), "c": np.array(condition)}
        np.testing.assert_array_equal(run_in_double(model, feeds)[0], run_in_double(before, feeds)[0])


def test_a_default_of_an_input_is_no_constant() -> None:
    model = graph("y = Mul(x, c)", "float[N,6] x, float c", initializers="float c = {1}")
    node = next(iter(model.graph))
    with pytest.raises(Refused, match="no operand is the neutral element"):
        REMOVE_NEUTRAL_OPERAND.rewrite(node)
