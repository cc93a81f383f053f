"""Flash attention whose products have bfloat16 operands: the kernel against float64, and who asks for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graph_passes.ops.attention import fuse_flash_attention
from graph_passes.step import run

from ..harness import BFLOAT16_ISAS, ISAS, runs_here, session
from .reference import MASKS, SHAPES, of_heads, operands, oracle
from .test_rule import ATTENTION, graph


def bfloat16(array: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("isa", ISAS)
def test_operands_are_rounded_where_the_machine_multiplies_them(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against attention of the rounded operands: what is left is the rounding of the weights, 2^-9. Other machines stay in float32."""
    if not runs_here(isa, of_heads("FlashAttention", 1, 1.0, bfloat16=1), ops_library, monkeypatch):
        return
    for shape in SHAPES:
        scale = np.float32(shape[4] ** -0.5)
        kernel = session(of_heads("FlashAttention", shape[1], float(scale), bfloat16=1), ops_library)
        for mask in MASKS:
            feeds = operands(shape, mask)
            expected, allowed = oracle(shape[1], float(scale), **feeds)
            if isa in BFLOAT16_ISAS:
                rounded = {"q": bfloat16(feeds["q"] * scale), "k": bfloat16(feeds["k"]), "v": bfloat16(feeds["v"]), "mask": feeds["mask"]}
                expected, allowed = oracle(shape[1], 1.0, **rounded)
                allowed = allowed + 2.0**-9 * np.abs(feeds["v"]).max()
            assert (np.abs(kernel.run(None, feeds)[0] - expected) <= allowed).all()


def test_the_body_keeps_float32() -> None:
    feeds = operands((2, 2, 5, 7, 3), "keys")
    plain, rounding = (session(of_heads("FlashAttention", 2, 0.5, **more), None).run(None, feeds)[0] for more in ({}, {"bfloat16": 1}))
    np.testing.assert_array_equal(plain, rounding)


def test_the_kernel_rounds_or_does_not(ops_library: Path) -> None:
    with pytest.raises(Exception, match="FlashAttention: the attribute 'bfloat16' must be 0 or 1, and is 2"):
        session(of_heads("FlashAttention", 2, 1.0, bfloat16=2), ops_library)


@pytest.mark.parametrize(("precision", "attributes"), [("fp32", {"heads", "scale"}), ("bf16", {"heads", "scale", "bfloat16"})])
def test_the_precision_of_a_package_is_its_nodes(precision: str, attributes: set[str]) -> None:
    model = graph(ATTENTION)
    run(model, (fuse_flash_attention(precision),))
    assert set(model.graph[0].attributes) == attributes
