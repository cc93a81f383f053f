"""What SDXL is told of a picture's size and crop, the U-Net's input `time_ids` (Podell et al. 2023, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from runtime.errors import InputError

Pair = tuple[int, int]
BASE, REFINER = 6, 5  # numbers in `time_ids`, by which the two networks are told apart
SCORES = ("aesthetic_score", "negative_aesthetic_score")  # the refiner's alone
TARGETS = ("target", "negative_target")  # the base's alone


@dataclass(frozen=True)
class SizeConditioning:
    """The picture as it lay in the training set: `original`, its size before it was made smaller; `crop`, the corner where it was cut
    out; and for the base `target`, its size after that, for the refiner an `aesthetic_score` from 1 to 10 in its place.

    Sizes are (height, width), corners (top, left), in pixels. Guidance leads away from the `negative_...`. None is left open; `filled`
    has the defaults.
    """

    original: Pair | None = None
    crop: Pair | None = None
    target: Pair | None = None
    aesthetic_score: float | None = None
    negative_original: Pair | None = None
    negative_crop: Pair | None = None
    negative_target: Pair | None = None
    negative_aesthetic_score: float | None = None

    def for_base(self) -> Self:
        """Without what only the refiner takes."""
        return replace(self, **dict.fromkeys(SCORES))

    def for_refiner(self) -> Self:
        """Without what only the base takes."""
        return replace(self, **dict.fromkeys(TARGETS))

    def filled(self, pipeline: Mapping[str, Any], height: int, width: int) -> Self:
        """All that a package's U-Net takes for pictures of `height` x `width` pixels; None stays what it does not take. `pipeline` is
        the manifest's.

        Defaults are diffusers': sizes are the picture's, corners (0, 0), a negative size is the positive one. The base's negative corner
        is the positive one too, unless a negative size is given. (diffusers ignores a lone negative size in text to image, and the base's
        negative corner in image to image; here what is given counts.) Errors: InputError for what the U-Net does not take, and for
        impossible sizes.
        """
        count = pipeline.get("time_ids", 0)
        self._check(count)
        if not count:
            return self
        original = self.original or (height, width)
        sizes = replace(self, original=original, crop=self.crop or (0, 0), negative_original=self.negative_original or original)
        if count == REFINER:
            scores = {name: pipeline[name] for name in SCORES if getattr(self, name) is None}
            return replace(sizes, negative_crop=self.negative_crop or (0, 0), **scores)
        target = self.target or (height, width)
        negative_crop = (0, 0) if self.negative_original or self.negative_target else sizes.crop
        return replace(
            sizes, target=target, negative_crop=self.negative_crop or negative_crop, negative_target=self.negative_target or target
        )

    def time_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Of filled ones: what to lead away from, and what to lead to; float32 [1, 6] or [1, 5] each."""
        negative = (self.negative_original, self.negative_crop, self.negative_target, self.negative_aesthetic_score)
        positive = (self.original, self.crop, self.target, self.aesthetic_score)
        rows = [[number for part in parts if part is not None for number in np.atleast_1d(part)] for parts in (negative, positive)]
        return np.asarray(rows[:1], np.float32), np.asarray(rows[1:], np.float32)

    def given(self) -> dict[str, Pair | float]:
        """What is not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def _check(self, count: int) -> None:
        others = {BASE: SCORES, REFINER: TARGETS}
        for name, value in self.given().items():
            is_corner = name.endswith("crop")
            title = name.replace("_", " ") + ("" if is_corner or name in SCORES else " size")
            if not count:
                raise InputError(f"{_article(title)} means nothing to this package: only SDXL's are told of sizes")
            if name in others[count]:
                model, other = ("SDXL's base", "the refiner") if count == BASE else ("the refiner", "SDXL's base")
                raise InputError(f"{_article(title)} means nothing to {model}: {other} takes it")
            if isinstance(value, float | int):
                if not math.isfinite(value):
                    raise InputError(f"an aesthetic score of {value} is not possible: give a number, LAION's go from 1 to 10")
            elif min(value) < (0 if is_corner else 1):
                raise InputError(f"the {title} {value[0]}, {value[1]} is not possible: it counts pixels")


def _article(title: str) -> str:
    return f"{'an' if title[0] in 'ao' else 'a'} {title}"
