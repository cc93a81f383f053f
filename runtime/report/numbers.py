"""How the report writes numbers."""

from __future__ import annotations

import math

from runtime import compare


def quantity(value: float | None, digits: int = 3) -> str:
    """A number with that many significant digits, no exponent between 0.001 and 10 million; a dash for None."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa} × 10{_superscript(int(exponent))}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return count(round(value)) if decimals == 0 else f"{value:.{decimals}f}"


def plain(value: float) -> str:
    """A number with up to three significant digits, none of them a trailing zero."""
    return f"{value:.3g}"


def count(value: int) -> str:
    """An integer with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def megabytes(size: int) -> str:
    """Bytes as kB, MB or GB (powers of 1,000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f}\u202f{unit}"
    return f"{size / 1e3:.1f}\u202fkB"


def decibels(value: float | None) -> str:
    """SNR with one decimal; equal arrays have none."""
    return "not checked" if value is None else compare.decibels(value).replace(" ", "\u202f")


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
