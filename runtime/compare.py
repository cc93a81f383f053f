"""How far two arrays are apart: the two figures that every check of this project reports."""

from __future__ import annotations

import numpy as np

# more than float64 can tell apart: the figure of two equal arrays, so that it stays a number in JSON
EQUAL_DB = 400.0


def snr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """Signal-to-noise ratio 10 log10(sum(r^2) / sum((r - v)^2)) in dB, computed in float64.

    EQUAL_DB where the arrays are equal; -EQUAL_DB where `value` has NaN or infinity, or differs from a reference of zeros.
    Errors: ValueError where the shapes differ.
    """
    if reference.shape != value.shape:
        raise ValueError(f"the shapes differ: {list(reference.shape)} and {list(value.shape)}")
    reference, value = reference.astype(np.float64), value.astype(np.float64)
    if not np.isfinite(value).all():
        return -EQUAL_DB
    noise, signal = float(np.square(reference - value).sum()), float(np.square(reference).sum())
    if noise == 0:
        return EQUAL_DB
    return float(10 * np.log10(signal / noise)) if signal else -EQUAL_DB


def max_abs(reference: np.ndarray, value: np.ndarray) -> float:
    """Largest absolute difference; infinity where `value` has NaN or infinity. Errors: ValueError where the shapes differ."""
    if reference.shape != value.shape:
        raise ValueError(f"the shapes differ: {list(reference.shape)} and {list(value.shape)}")
    if not np.isfinite(value).all():
        return float("inf")
    return float(np.abs(reference.astype(np.float64) - value.astype(np.float64)).max(initial=0.0))


def decibels(snr: float) -> str:
    """An SNR for people, with one decimal; "equal" where there is no noise."""
    return "equal" if snr >= EQUAL_DB else f"{snr:.1f} dB"
