"""The small world of the embedded model: scenes with a caption, and the judge that finds them again in pixels.

A scene is one shape at a place, or two shapes in a relation, on a plain background. The captions are the whole language that
`models/tiny` was trained on; a tenth of the exact combinations was held out of training (`is_held_out`) and the score uses only those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (36, 84, 214),
    "yellow": (250, 205, 40),
    "white": (245, 245, 245),
    "black": (24, 24, 24),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.135, "large": 0.235}  # half the width, in widths of the picture
PAIR_SIZE = 0.175
PLACES = {  # centre of a single shape, in widths of the picture from the middle: (x, y), y downwards
    "in the centre": (0.0, 0.0),
    "at the top": (0.0, -0.22),
    "at the bottom": (0.0, 0.22),
    "at the left": (-0.22, 0.0),
    "at the right": (0.22, 0.0),
}
RELATIONS = {  # direction from the second shape to the first
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
    "left of": (-1.0, 0.0),
    "right of": (1.0, 0.0),
}
PAIR_OFFSET = 0.225


@dataclass(frozen=True)
class Thing:
    """One coloured shape. `centre` is (x, y) and `radius` is half the width, both in widths of the picture from its top left."""

    colour: str
    shape: str
    centre: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class Scene:
    """What a caption names: the things with their nominal positions, and the background's colour."""

    caption: str
    things: tuple[Thing, ...]
    background: str


def scenes() -> Iterator[Scene]:
    """Every scene of the language, in a fixed order: 1,200 with one shape and 7,680 with two."""
    for background in COLOURS:
        others = [colour for colour in COLOURS if colour != background]
        for colour in others:
            for shape in SHAPES:
                for size, radius in SIZES.items():
                    for place, (x, y) in PLACES.items():
                        thing = Thing(colour, shape, (0.5 + x, 0.5 + y), radius)
                        yield Scene(f"a {size} {colour} {shape} {place} on a {background} background", (thing,), background)
        for first in others:
            for second in (colour for colour in others if colour != first):
                for first_shape in SHAPES:
                    for second_shape in SHAPES:
                        for relation, (x, y) in RELATIONS.items():
                            pair = (
                                Thing(first, first_shape, (0.5 + x * PAIR_OFFSET, 0.5 + y * PAIR_OFFSET), PAIR_SIZE),
                                Thing(second, second_shape, (0.5 - x * PAIR_OFFSET, 0.5 - y * PAIR_OFFSET), PAIR_SIZE),
                            )
                            caption = f"a {first} {first_shape} {relation} a {second} {second_shape} on a {background} background"
                            yield Scene(caption, pair, background)


def is_held_out(scene: Scene) -> bool:
    """Whether the exact combination is kept out of training: one in ten, by a hash of the caption."""
    return hashlib.sha256(scene.caption.encode()).digest()[0] % 10 == 0


def score_scenes(count: int = 64, skip: int = 0) -> list[Scene]:
    """The fixed held-out scenes of the score: a quarter with one shape, the rest with two, spread evenly by hash order."""
    ordered = sorted((s for s in scenes() if is_held_out(s)), key=lambda s: hashlib.sha256(s.caption.encode()).digest()[1:])
    single = [s for s in ordered if len(s.things) == 1][skip:]
    pairs = [s for s in ordered if len(s.things) == 2][skip:]
    return single[: count // 4] + pairs[: count - count // 4]


def shape_mask(shape: str, x: np.ndarray, y: np.ndarray, radius: float, soft: float) -> np.ndarray:
    """Coverage in 0..1 of a shape centred at the origin, at points (x, y); its edge is `soft` wide (all in the same unit)."""
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - radius
    elif shape == "triangle":  # isosceles, as high as it is wide, pointing up
        slanted = (2 * np.abs(x) - y - radius) / 5**0.5
        distance = np.maximum(slanted, y - radius)
    elif shape == "cross":
        arm = radius * 0.38
        distance = np.minimum(
            np.maximum(np.abs(x) - arm, np.abs(y) - radius),
            np.maximum(np.abs(y) - arm, np.abs(x) - radius),
        )
    else:
        raise ValueError(f"'{shape}' is no shape of this world: {', '.join(SHAPES)}")
    return np.asarray(np.clip(0.5 - distance / soft, 0.0, 1.0))


def draw(scene: Scene, size: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Paints a scene: float32 [size, size, 3] in 0..1. With `rng`, positions and sizes vary a little, as in training."""
    axis = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    picture = np.broadcast_to(np.asarray(COLOURS[scene.background], np.float32) / 255, (size, size, 3)).copy()
    for thing in scene.things:
        jitter = rng.uniform(-0.025, 0.025, 2) if rng else (0.0, 0.0)
        radius = thing.radius * (rng.uniform(0.93, 1.07) if rng else 1.0)
        mask = shape_mask(thing.shape, x - thing.centre[0] - jitter[0], y - thing.centre[1] - jitter[1], radius, 1 / size)
        colour = np.asarray(COLOURS[thing.colour], np.float32) / 255
        picture += mask[..., None].astype(np.float32) * (colour - picture)
    return picture.astype(np.float32)


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows its scene, and the first thing that is wrong with it."""

    right: bool
    reason: str = ""


def judge(picture: np.ndarray, scene: Scene) -> Verdict:
    """Looks for a scene in a picture, uint8 [H, W, 3], by colour and outline alone.

    Each pixel gets the nearest colour of the palette. The background must cover at least 85 % of the pixels that no named thing
    covers; each named colour must form one body of the named size (0.6 to 1.5 of the nominal area), centred within 0.11 widths of
    its place, whose outline overlaps the named shape better than every other shape, with an intersection over union of 0.7 at least.
    """
    height, width = picture.shape[:2]
    palette = np.asarray(list(COLOURS.values()), np.float32)
    names = list(COLOURS)
    nearest = ((picture[:, :, None, :].astype(np.float32) - palette) ** 2).sum(-1).argmin(-1)
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    soft = 1 / max(height, width)

    free = np.ones((height, width), bool)
    for thing in scene.things:  # a margin of two pixels: mixed colours at an edge may be nearest to a third one
        free &= shape_mask("circle", x - thing.centre[0], y - thing.centre[1], 1.5 * thing.radius + 0.05, soft) < 0.5
    share = float((nearest[free] == names.index(scene.background)).mean())
    if share < 0.85:
        return Verdict(False, f"the background is {scene.background} in {share:.0%} of its pixels only")

    for thing in scene.things:
        mask = _without_stray_pixels(nearest == names.index(thing.colour))
        nominal = float(shape_mask(thing.shape, x - thing.centre[0], y - thing.centre[1], thing.radius, soft).sum())
        ratio = float(mask.sum()) / nominal
        if not 0.6 <= ratio <= 1.5:
            return Verdict(False, f"{thing.colour} covers {ratio:.2f} times the area of the {thing.shape}")
        left, right = np.quantile(x[mask], [0.005, 0.995])
        top, bottom = np.quantile(y[mask], [0.005, 0.995])
        centre = ((left + right) / 2, (top + bottom) / 2)
        away = float(np.hypot(centre[0] - thing.centre[0], centre[1] - thing.centre[1]))
        if away > 0.11:
            return Verdict(False, f"the {thing.colour} thing stands {away:.2f} widths away from its place")
        overlap = {shape: _best_overlap(mask, shape, x, y, centre, thing.radius, soft) for shape in SHAPES}
        best = max(overlap, key=lambda shape: overlap[shape])
        if best != thing.shape or overlap[best] < 0.7:
            return Verdict(False, f"the {thing.colour} thing looks like a {best} ({overlap[best]:.2f}), not a {thing.shape}")
    return Verdict(True)


def _without_stray_pixels(mask: np.ndarray) -> np.ndarray:
    """Keeps the pixels with a majority of their 3x3 neighbourhood: the mixed colours of an edge are often nearest to a third colour."""
    padded = np.pad(mask, 1).astype(np.int32)
    height, width = mask.shape
    neighbours = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    return mask & (neighbours >= 5)


def _best_overlap(
    mask: np.ndarray, shape: str, x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radius: float, soft: float
) -> float:
    best = 0.0
    for scale in (0.85, 0.93, 1.0, 1.07, 1.15):
        other = shape_mask(shape, x - centre[0], y - centre[1], radius * scale, soft) > 0.5
        best = max(best, float((mask & other).sum() / (mask | other).sum()))
    return best
