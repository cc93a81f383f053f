"""`runtime.compare` against figures that are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.compare import EQUAL_DB, decibels, max_abs, snr_db


def test_a_hundredth_of_the_amplitude_is_forty_decibels() -> None:
    reference = np.array([3.0, -4.0, 12.0])
    assert snr_db(reference, reference * 1.01) == pytest.approx(40.0, abs=1e-9)
    assert max_abs(reference, reference * 1.01) == pytest.approx(0.12)


def test_sums_are_in_float64() -> None:
    """A million float32 values whose error drowns when float32 adds it up: the noise is 2^-24 of the signal's amplitude, 144.5 dB."""
    reference = np.ones(1_000_000, np.float32)
    assert snr_db(reference, np.nextafter(reference, np.float32(0))) == pytest.approx(20 * np.log10(2.0**24), abs=1e-6)


def test_equal_arrays_have_a_figure_that_json_can_hold() -> None:
    assert snr_db(np.zeros(3), np.zeros(3)) == EQUAL_DB
    assert decibels(EQUAL_DB) == "equal"
    assert decibels(40.06) == "40.1 dB"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_the_worst(bad: float) -> None:
    assert snr_db(np.ones(2), np.array([1.0, bad])) == -EQUAL_DB
    assert max_abs(np.ones(2), np.array([1.0, bad])) == np.inf


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the shapes differ: \[2\] and \[1, 2\]"):
        snr_db(np.ones(2), np.ones((1, 2)))
