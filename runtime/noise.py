"""Seeded Gaussian noise, number for number torch's CPU generator's: the same seed starts the same picture as in diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from runtime.errors import InputError

BLOCK = 16  # torch fills tensors of at least this many numbers in blocks, smaller ones number by number


class Noise:
    """A stream of standard normal numbers: `torch.Generator("cpu").manual_seed(seed)` and `torch.randn` after `torch.randn` with it.

    MT19937 (Matsumoto & Nishimura 1998) and the Box-Muller transform (1958), with torch's order of the uniform numbers. Draws of fewer
    than 16 numbers are equal to the bit. In larger ones five numbers of six are, and the rest within 3 units in the last place:
    torch evaluates logarithm and sine with float32 polynomials that differ between processors; here they are rounded from float64.
    """

    def __init__(self, seed: int) -> None:
        """`seed`: what torch accepts, -2**63 to 2**64 - 1; torch's engine reads its lowest 32 bits. Errors: InputError."""
        if not -(2**63) <= seed < 2**64:
            raise InputError(f"the seed {seed} does not fit in 64 bits: take a number from 0 to {2**32 - 1}")
        self._engine = np.random.RandomState(seed & 0xFFFFFFFF)
        self._spare: float | None = None  # the second number of the last pair that a small draw left over

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """The next numbers of the stream: float32 of the given shape, mean 0, standard deviation 1."""
        count = math.prod(shape)
        numbers = self._blocks(count) if count >= BLOCK else np.array([self._single() for _ in range(count)])
        return numbers.astype(np.float32).reshape(tuple(shape))

    def _words(self, count: int) -> np.ndarray:
        """The engine's next 32-bit words, as uint64 [count]."""
        return self._engine.randint(0, 2**32, count, np.uint32).astype(np.uint64)

    def _blocks(self, count: int) -> np.ndarray:
        """Float32 [count]: blocks of 16, each from 8 radii and 8 angles; an incomplete last block is drawn anew over the last 16."""
        uniform = self._uniform24(count)
        whole = count - count % BLOCK
        numbers = np.empty(count, np.float32)
        numbers[:whole] = _box_muller(uniform[:whole])
        if whole < count:
            numbers[-BLOCK:] = _box_muller(self._uniform24(BLOCK))
        return numbers

    def _uniform24(self, count: int) -> np.ndarray:
        """Float32 [count] in [0, 1) with 24 random bits, exactly representable."""
        return (self._words(count) & np.uint64(2**24 - 1)).astype(np.float32) * np.float32(2**-24)

    def _single(self) -> float:
        """One number from the float64 transform, whose pairs are handed out one after the other, across draws too."""
        if self._spare is not None:
            number, self._spare = self._spare, None
            return number
        words = [int(word) for word in self._words(4)]
        angle, distance = (((high << 32 | low) & 2**53 - 1) * 2.0**-53 for high, low in (words[:2], words[2:]))
        radius = math.sqrt(-2.0 * math.log1p(-distance))
        self._spare = radius * math.sin(2.0 * math.pi * angle)
        return radius * math.cos(2.0 * math.pi * angle)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Float32 [n * 16] in [0, 1) -> [n * 16] normal numbers, every intermediate value rounded to float32 as in torch."""
    pairs = uniform.reshape(-1, 2, BLOCK // 2)
    logarithm = np.log((np.float32(1.0) - pairs[:, 0]).astype(np.float64)).astype(np.float32)
    radius = np.sqrt(np.float32(-2.0) * logarithm)
    angle = (pairs[:, 1] * np.float32(2.0 * math.pi)).astype(np.float64)
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)
