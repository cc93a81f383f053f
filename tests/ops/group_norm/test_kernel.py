"""The kernels of GroupNorm and GroupNormSilu against float64, for every instruction set that they are written for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from ..harness import ISAS, UNIT, Shape, hold_that_the_library_decides, runs_here, session, without_body, without_shape
from .reference import OPS, SHAPES, node, operands, oracle


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_is_group_normalization(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not runs_here(isa, node("GroupNorm", SHAPES[0][0], epsilon=1e-5, groups=4), ops_library, monkeypatch):
        return
    for op_type in OPS:
        for shape, groups in SHAPES:
            kernel = session(node(op_type, shape, epsilon=1e-5, groups=groups), ops_library)
            for mean in (0.0, 1e4, -1e6):
                feeds = operands(shape, mean)
                expected, allowed = oracle(op_type, groups, 1e-5, **feeds)
                got = kernel.run(None, feeds)[0]
                assert got.shape == shape
                assert (np.abs(got - expected) <= allowed).all()


def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = node("GroupNorm", ("N", 8, "H"), epsilon=1e-5, groups=4), operands((2, 8, 30), 1)
    results = [session(model, library).run(None, feeds)[0] for library in (ops_library, None)]
    np.testing.assert_allclose(*results, rtol=0, atol=16 * UNIT * 4)
    hold_that_the_library_decides(model, ops_library, monkeypatch)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"x": (1, 5, 3)}, "GroupNorm: 5 channels are no multiple of 2 groups"),
        ({"scale": (3,)}, r"GroupNorm: the scale has shape \[3\], and the input has 4 channels"),
        ({"bias": (8,)}, r"GroupNorm: the bias has shape \[8\], and the input has 4 channels"),
    ],
)
def test_the_kernel_refuses_shapes_with_a_sentence(ops_library: Path, shapes: dict[str, tuple[int, ...]], sentence: str) -> None:
    kernel = session(node("GroupNorm", ("N", "C", "H"), epsilon=1e-5, groups=2), ops_library)
    good = {"x": (1, 4, 3), "scale": (4,), "bias": (4,)}
    with pytest.raises(Exception, match=sentence):
        kernel.run(None, {name: np.ones(size, np.float32) for name, size in {**good, **shapes}.items()})
    (y,) = kernel.run(None, {name: np.ones(size, np.float32) for name, size in good.items()})
    np.testing.assert_array_equal(y, np.ones((1, 4, 3)))  # a refusal leaves the session as it was


def test_the_kernel_refuses_an_input_without_channels(ops_library: Path) -> None:
    kernel = session(node("GroupNorm", ("N",), epsilon=1e-5, groups=2), ops_library)
    with pytest.raises(Exception, match=r"GroupNorm: the input has shape \[4\], and must be \[batch, channels, ...\]"):
        kernel.run(None, {name: np.ones(4, np.float32) for name in ("x", "scale", "bias")})


@pytest.mark.parametrize(
    ("attributes", "dtype", "sentence"),
    [
        ({"groups": 2}, "FLOAT", "GroupNormSilu: the attribute 'epsilon' is missing or is not a float"),
        ({"epsilon": 1e-5}, "FLOAT", "GroupNormSilu: the attribute 'groups' is missing or is not an integer"),
        ({"epsilon": 1e-5, "groups": 2.5}, "FLOAT", "GroupNormSilu: the attribute 'groups' is missing or is not an integer"),
        ({"epsilon": 1e-5, "groups": 0}, "FLOAT", "GroupNormSilu: the attribute 'groups' must be 1 or more, and is 0"),
        ({"epsilon": -1.0, "groups": 2}, "FLOAT", "GroupNormSilu: the attribute 'epsilon' must be a number from 0 on"),
        ({"epsilon": 1e-5, "groups": 2}, "FLOAT16", r"Type 'tensor\(float16\)' of input parameter \(x\) of operator \(GroupNormSilu\)"),
    ],
)
def test_the_kernel_refuses_attributes_and_types_with_a_sentence(
    ops_library: Path, attributes: dict[str, float], dtype: str, sentence: str
) -> None:
    model = node("GroupNormSilu", (1, 4, 3), dtype=onnx.TensorProto.DataType.Value(dtype), **attributes)
    with pytest.raises(Exception, match=sentence):
        session(without_body(model), ops_library)


@pytest.mark.parametrize(("shape", "inferred"), [(("N", 8, 5, "W"), ["N", 8, 5, "W"]), (("N", 8, None, "W"), []), (None, [])])
def test_the_kernel_keeps_a_shape_that_is_known(ops_library: Path, shape: Shape, inferred: list[int | str]) -> None:
    kernel = session(without_shape(without_body(node("GroupNormSilu", shape, epsilon=1e-5, groups=4))), ops_library)
    assert kernel.get_outputs()[0].shape == inferred
    assert kernel.run(None, operands((2, 8, 5, 7), 0))[0].shape == (2, 8, 5, 7)
