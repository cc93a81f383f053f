"""The estimate that limits are made of: residual networks with rounded weights are as far off as it says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from export.limits import A16W8, BF16, BLOCK_PEAK, CHANNEL_PEAK, DEEPEST, FP16, HALF_PRODUCTS, W4, W8, Limits, rounded_weights_db
from export.parity import check_component
from graph_passes.passes.quantize_weights import best_scales, rounded
from runtime.compare import snr_db
from runtime.errors import CheckFailed
from runtime.session import Sessions

WIDTH, BLOCK = 64, 64
Round = Callable[[np.ndarray], np.ndarray]


def in_blocks(bits: int) -> Round:
    """Weights [K, N] as a package has them: with a scale to each block of a column."""

    def quantize(matrix: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(matrix.T).reshape(-1, BLOCK)
        scales = best_scales(rows, bits)
        return (rounded(rows, scales, bits) * scales[:, None]).reshape(matrix.shape[::-1]).T

    return quantize


def network(branches: int, change: Round) -> np.ndarray:
    """Tokens behind feed-forwards of equal powers, each of the normalized sum of those before it; weights go through `change`."""
    random = np.random.default_rng(branches)
    tokens = 0.1 * random.standard_normal((32, WIDTH))  # little beside what the branches add
    for _ in range(branches):
        first, second = (random.standard_normal(shape, np.float32) for shape in ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)))
        normal = (tokens - tokens.mean(1, keepdims=True)) / tokens.std(1, keepdims=True)
        inner = np.maximum(normal @ change(first) / WIDTH**0.5, 0)
        tokens = tokens + inner @ change(second) / (2 * WIDTH) ** 0.5  # half of `inner` is zero: branches of deviation 1
    return tokens


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("branches", [5, 20, 60])
def test_a_residual_network_is_as_far_off_as_is_estimated(bits: int, branches: int) -> None:
    found = snr_db(network(branches, lambda matrix: matrix), network(branches, in_blocks(bits)))
    # scales that clip a little are 1 dB better with 4 bits, and a network this narrow scatters by as much
    assert found == pytest.approx(rounded_weights_db(bits, BLOCK_PEAK, branches), abs=2.0)


@pytest.mark.parametrize(("count", "peak"), [(64, BLOCK_PEAK), (20_000, CHANNEL_PEAK)])
def test_the_largest_of_many_normal_weights(count: int, peak: float) -> None:
    largest = np.abs(np.random.default_rng(count).standard_normal((200, count), np.float32)).max(axis=1)
    assert largest.mean() == pytest.approx(peak, rel=0.02)


def test_limits_are_stricter_with_more_bits_and_nothing_at_all_passes_none() -> None:
    order = [Limits.of_precision(precision, "portable") for precision in ("w4", "w8", "a16w8", "fp16", "fp32")]
    assert order[:4] == [W4, W8, A16W8, FP16]
    for looser, stricter in pairwise(order):
        assert looser.component_snr_db < stricter.component_snr_db
        assert looser.step_snr_db < stricter.step_snr_db
    assert 0 < W4.component_snr_db < rounded_weights_db(4, BLOCK_PEAK, DEEPEST)
    assert Limits.of_precision("fp16", "cpu") == HALF_PRODUCTS
    assert BF16.component_snr_db < HALF_PRODUCTS.component_snr_db < FP16.component_snr_db


@pytest.mark.parametrize(("component", "side", "precision", "asked"), [
    ("vae_decoder", 64, "fp32", 90.0), ("vae_decoder", 512, "fp32", 90.0), ("vae_encoder", 1024, "fp32", 70.0),
    ("unet", 1024, "fp32", 90.0), ("vae_decoder", 1024, "bf16", 30.0),
    ("vae_decoder", 1024, "fp16", 40.0),
])
def test_less_is_asked_of_a_vae_whose_norms_sum_large_pictures(component: str, side: int, precision: str, asked: float) -> None:
    assert Limits.of_precision(precision, "cpu").of_component(component, side * side) == asked


def test_the_picture_of_a_component_tells_what_is_asked() -> None:
    """85 dB are enough for a picture of 1024x1024, and not for one of 128x128."""
    random = np.random.default_rng(0)
    for side, fails in ((1024, False), (128, True)):
        picture = random.standard_normal((1, 3, side, side))
        sessions = SimpleNamespace(run=lambda *_, picture=picture: {"sample": picture * (1 + 10 ** (-85 / 20))})
        with pytest.raises(CheckFailed, match=r"has an SNR of 85\.0 dB where 90 are asked for") if fails else nullcontext():
            check_component(cast("Sessions", sessions), "vae_decoder", {"latent_sample": picture[:, :, ::8, ::8]}, {"sample": picture})
