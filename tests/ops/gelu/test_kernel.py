"""The kernels of Gelu, QuickGelu and Geglu against float64, for every instruction set that they are written for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from ..harness import ISAS, UNIT, Shape, hold_that_the_library_decides, runs_here, session, without_body, without_shape
from .reference import OPS, SHAPES, node, operand, oracle


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_is_the_function(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for op_type in OPS:
        model = node(op_type, None)
        if not runs_here(isa, model, ops_library, monkeypatch):
            continue
        kernel = session(model, ops_library)
        for shape in SHAPES:
            for deviation in (0.1, 3.0, 30.0):
                x = operand(shape, deviation)
                expected, allowed = oracle(op_type, x)
                (got,) = kernel.run(None, {"x": x})
                assert got.shape == expected.shape
                assert (np.abs(got - expected) <= allowed).all()


@pytest.mark.parametrize("op_type", OPS)
def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(
    ops_library: Path, op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = node(op_type, ("N", "T", 8)), operand((2, 5, 8), 2)
    kernel, body = (session(model, library).run(None, {"x": x})[0] for library in (ops_library, None))
    np.testing.assert_allclose(kernel, body, rtol=0, atol=16 * UNIT * 4 * np.abs(x).max())
    hold_that_the_library_decides(model, ops_library, monkeypatch)


@pytest.mark.parametrize(("shape", "text"), [((2, 3), "2, 3"), ((), "")])
def test_the_kernel_refuses_what_has_no_halves(ops_library: Path, shape: tuple[int, ...], text: str) -> None:
    kernel = session(without_body(node("Geglu", None)), ops_library)
    sentence = rf"Geglu: the input has shape \[{text}\], and its last axis must hold the value and the gate, of equal size"
    with pytest.raises(Exception, match=sentence):
        kernel.run(None, {"x": np.ones(shape, np.float32)})
    assert kernel.run(None, {"x": np.zeros((1, 4), np.float32)})[0].shape == (1, 2)  # a refusal leaves the session as it was


def test_the_kernel_refuses_half_precision_with_a_sentence(ops_library: Path) -> None:
    model = without_body(node("Gelu", (2, 3), dtype=onnx.TensorProto.FLOAT16))
    with pytest.raises(Exception, match=r"Type 'tensor\(float16\)' of input parameter \(.*\) of operator \(Gelu\)"):
        session(model, ops_library)


@pytest.mark.parametrize(
    ("op_type", "shape", "inferred"),
    [("Gelu", ("N", 5, 8), ["N", 5, 8]), ("Geglu", ("N", 5, 8), ["N", 5, 4]), ("Geglu", ("N", 5, "C"), []), ("QuickGelu", None, [])],
)
def test_the_kernel_infers_its_shape(ops_library: Path, op_type: str, shape: Shape, inferred: list[int | str]) -> None:
    kernel = session(without_shape(without_body(node(op_type, shape))), ops_library)
    assert kernel.get_outputs()[0].shape == inferred
    assert kernel.run(None, {"x": operand((2, 5, 8), 1)})[0].shape == (2, 5, 4 if op_type == "Geglu" else 8)
