"""The noise against torch's CPU generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime.errors import InputError
from runtime.noise import Noise

# Both compute sqrt(-2 log u) cos(angle) in float32. The radius is at most sqrt(48 log 2) = 5.8. Where torch has vector instructions its
# polynomials are good to a few units in the last place; where it has none it rounds the angle, up to 2 pi, elsewhere: half a unit in
# the last place of it, 2.4e-7, twice. A wrong stream differs by 1.
TOLERANCE = 3e-6

SHAPES = [(1,), (3,), (2, 2), (15,), (16,), (17,), (31,), (5,), (32,), (33,), (100,), (7, 3, 5), (1, 4, 64, 64), (9,), (2, 4, 8, 9), (1,)]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, 2**32 + 5, 2**64 - 1, -3])
def test_successive_draws_are_those_of_torch(seed: int) -> None:
    """Small and large draws in turn: they share the engine, and small ones keep half a pair for later."""
    generator, noise = torch.Generator("cpu").manual_seed(seed), Noise(seed)
    for shape in SHAPES * 2:
        expected, drawn = torch.randn(shape, generator=generator).numpy(), noise.normal(shape)
        assert drawn.dtype == np.float32
        assert drawn.shape == shape
        if drawn.size < 16:
            np.testing.assert_array_equal(drawn, expected)
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=TOLERANCE)


def test_every_size_up_to_some_blocks() -> None:
    for size in range(1, 70):
        generator, noise = torch.Generator("cpu").manual_seed(size), Noise(size)
        for _ in range(2):
            np.testing.assert_allclose(noise.normal((size,)), torch.randn(size, generator=generator).numpy(), rtol=0, atol=TOLERANCE)


def test_same_seed_same_numbers() -> None:
    np.testing.assert_array_equal(Noise(7).normal((4, 33)), Noise(7).normal((4, 33)))
    assert not np.array_equal(Noise(7).normal((4, 33)), Noise(8).normal((4, 33)))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_that_torch_refuses(seed: int) -> None:
    with pytest.raises(InputError, match=f"the seed {seed} does not fit in 64 bits: take a number from 0 to 4294967295"):
        Noise(seed)
