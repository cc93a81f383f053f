"""Flash attention whose products have operands of 16 bits: the kernel against float64, and who asks for it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graph_passes.ops.attention import OPERANDS, fuse_flash_attention
from graph_passes.step import run

from ..harness import BFLOAT16_ISAS, ISAS, UNIT, runs_here, session
from .reference import MASKS, SHAPES, of_heads, operands, oracle
from .test_rule import ATTENTION, graph

NUMBERS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", NUMBERS)
def test_operands_are_rounded(ops_library: Path, kind: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against attention of the rounded operands; to bfloat16 they are rounded where the machine multiplies it, and others stay in float32.

    What is left of bfloat16 is the rounding of the weights, 2^-9; of float16 that of sums, whose last place is 2^12 times float32's.
    """
    if not runs_here(isa, of_heads("FlashAttention", 1, 1.0, operands=kind), ops_library, monkeypatch):
        return
    for shape in SHAPES:
        scale = np.float32(shape[4] ** -0.5)
        kernel = session(of_heads("FlashAttention", shape[1], float(scale), operands=kind), ops_library)
        for mask in MASKS:
            feeds = operands(shape, mask)
            expected, allowed = oracle(shape[1], float(scale), **feeds)
            if kind == "float16" or isa in BFLOAT16_ISAS:
                scaled = {"q": feeds["q"] * scale, "k": feeds["k"], "v": feeds["v"]}
                rounded = {name: array.astype(NUMBERS[kind]).astype(np.float32) for name, array in scaled.items()}
                expected, allowed = oracle(shape[1], 1.0, **rounded, mask=feeds["mask"])
                allowed = allowed * 2.0**-11 / UNIT if kind == "float16" else allowed + 2.0**-9 * np.abs(feeds["v"]).max()
            assert (np.abs(kernel.run(None, feeds)[0] - expected) <= allowed).all()


def test_the_body_keeps_float32() -> None:
    feeds = operands((2, 2, 5, 7, 3), "keys")
    plain, *rounding = (
        session(of_heads("FlashAttention", 2, 0.5, **more), None).run(None, feeds)[0]
        for more in ({}, *({"operands": kind} for kind in NUMBERS))
    )
    for each in rounding:
        np.testing.assert_array_equal(plain, each)


def test_a_score_beyond_the_range_of_float16_is_no_number_on_any_machine(
    ops_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a check sees what a device would make of it."""
    model = of_heads("FlashAttention", 1, 1.0, operands="float16")
    feeds = {name: np.full((1, 2, 2), 250, np.float32) for name in ("q", "k", "v")} | {"mask": np.zeros((1, 1, 1, 1), np.float32)}
    for isa in ISAS:
        if runs_here(isa, model, ops_library, monkeypatch):
            assert not np.isfinite(session(model, ops_library).run(None, feeds)[0]).any()


def test_the_kernel_refuses_other_operands(ops_library: Path) -> None:
    with pytest.raises(Exception, match="FlashAttention: the attribute 'operands' must be float32, bfloat16 or float16, and is 'int8'"):
        session(of_heads("FlashAttention", 2, 1.0, operands="int8"), ops_library)


@pytest.mark.parametrize("precision", OPERANDS)
def test_the_precision_of_a_package_is_its_nodes(precision: str) -> None:
    model = graph(ATTENTION)
    run(model, (fuse_flash_attention(precision),))
    attributes = model.graph[0].attributes
    assert set(attributes) == {"heads", "scale", *(["operands"] if precision != "fp32" else [])}
    assert precision == "fp32" or attributes["operands"].as_string() == OPERANDS[precision]
