"""What a user asks of a package, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.inputs import require_size
from runtime.pipelines.size_conditioning import SizeConditioning
from runtime.pipelines.steps import below_strength, steps_and_strength
from runtime.schedulers.base import Scheduler
from runtime.session import Sessions


@dataclass(frozen=True, eq=False)
class Settings:
    """One picture per prompt, each from its own seed: a picture does not depend on what else is in the batch.

    What is None comes from the package (`resolve`). `height` and `width` are in pixels. `image` is uint8 [H, W, 3] and `mask`
    uint8 [H, W], where 128 and more is painted anew; both are resized to the picture. `strength` is the share of the steps that an
    image is noised back by (Meng et al. 2022); `guidance` is the scale of Ho & Salimans 2022, none at 1 and below, and
    `guidance_rescale` the share of Lin et al. 2024; `eta` is DDIM's. No `negative` prompt is another thing than an empty one: SDXL was
    trained with zeros in its place. `latents`, float32 [pictures, channels, h, w] with unit variance, start text to image in place of the
    seeds' noise.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_rescale: float | None = None
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    strength: float | None = None
    eta: float = 0.0
    sizes: SizeConditioning = field(default_factory=SizeConditioning)
    latents: np.ndarray | None = None
    safety_checker: bool = True

    @classmethod
    def one_prompt(cls, prompt: str, seed: int = 0, count: int = 1, **others: Any) -> Settings:
        """`count` pictures of one prompt, from `seed`, `seed + 1`, and so on. Errors: InputError where `count` is below 1."""
        if count < 1:
            raise InputError(f"{count} pictures can't be made: give 1 or more")
        return cls((prompt,) * count, tuple(range(seed, seed + count)), **others)


@dataclass(frozen=True, eq=False)
class Resolved:
    """Settings with nothing left open, checked against a package. The fields mean the same."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative: str | None
    steps: int
    guidance: float
    guidance_rescale: float
    scheduler: str
    height: int
    width: int
    strength: float
    eta: float
    sizes: SizeConditioning
    safety_checker: bool


@dataclass(frozen=True, eq=False)
class Result:
    """`images` uint8 [B, H, W, 3]; `latents` float32 [B, C, h, w], as the decoder got them but for the scaling factor.

    `settings` are the base's where a refiner finished, whose own are `refiner_settings`.
    `timings`: seconds of every use of a component, without its loading; the U-Net has one entry per step.
    `flagged`: whether the safety checker blackened each picture. `warnings`: sentences for the user.
    """

    images: np.ndarray
    latents: np.ndarray
    settings: Resolved
    timings: dict[str, list[float]]
    flagged: tuple[bool, ...]
    warnings: tuple[str, ...] = field(default=())
    refiner_settings: Resolved | None = None

    @property
    def prompt_seconds(self) -> float:
        """What the text encoders took."""
        return sum(sum(seconds) for component, seconds in self.timings.items() if component.startswith("text_encoder"))

    @property
    def step_seconds(self) -> float:
        """What the U-Net took at a step, the median."""
        return float(np.median(self.timings["unet"]))

    @property
    def decoding_seconds(self) -> float:
        """What the decoder took."""
        return sum(self.timings["vae_decoder"])


def resolve(settings: Settings, sessions: Sessions, scheduler: Scheduler) -> Resolved:
    """Fills in the package's defaults and checks what the scheduler does not. Errors: InputError."""
    pipeline = sessions.package.manifest.pipeline
    guidance = float(pipeline["guidance"] if settings.guidance is None else settings.guidance)
    rescale = float(pipeline.get("guidance_rescale", 0.0) if settings.guidance_rescale is None else settings.guidance_rescale)
    if not settings.prompts:
        raise InputError("there is no prompt: give one, it may be empty")
    if len(settings.seeds) != len(settings.prompts):
        raise InputError(f"{len(settings.prompts)} prompts need as many seeds, not {len(settings.seeds)}")
    if not 0 <= guidance < float("inf"):
        raise InputError(f"guidance {guidance} is impossible: give 0 or more (1 and below: none)")
    if not 0 <= rescale <= 1:
        raise InputError(f"a guidance rescale of {rescale} is impossible: give 0 (none) to 1")
    if settings.strength is not None and settings.image is None:
        raise InputError("strength says how much of an image is changed: give an image with it")
    if settings.mask is not None and settings.image is None:
        raise InputError("a mask needs the image that it masks")
    # diffusers' defaults: an image is changed, a masked region is made anew
    changes = settings.image is not None and settings.mask is None
    steps, strength = steps_and_strength(
        settings.steps, settings.strength, pipeline, pipeline.get("strength", 0.8) if changes else 1.0, below_strength(scheduler, sessions)
    )
    height, width = _size(settings, sessions)
    return Resolved(
        settings.prompts,
        settings.seeds,
        settings.negative,
        steps,
        guidance,
        rescale,
        scheduler.name,
        height,
        width,
        strength,
        settings.eta,
        settings.sizes.filled(pipeline, height, width),
        settings.safety_checker,
    )


def _size(settings: Settings, sessions: Sessions) -> tuple[int, int]:
    """Height and width in pixels: what is asked for, else what the graph or the image has, else the package's default."""
    pipeline = sessions.package.manifest.pipeline
    # how a picture's sides must divide: by the decoder's factor, and where the graph needs it by the U-Net's halvings too
    multiple = pipeline.get("size_multiple", pipeline["vae_scale_factor"])
    graph = sessions.inputs("unet")["sample"].shape[2:]
    sides = []
    for axis, name in enumerate(("height", "width")):
        one_size = isinstance(graph[axis], int) and "sizes" not in pipeline
        fixed = graph[axis] * pipeline["vae_scale_factor"] if one_size else None
        asked = getattr(settings, name)
        if asked is not None:
            side = asked
        elif fixed is not None:
            side = fixed
        elif settings.image is not None and "sizes" not in pipeline:
            side = max(settings.image.shape[axis] // multiple, 1) * multiple
        else:
            side = pipeline[name]
        if side <= 0 or side % multiple:
            raise InputError(f"a {name} of {side} is not possible: this package takes multiples of {multiple}")
        if fixed is not None and side != fixed:
            raise InputError(f"this package makes pictures with a {name} of {fixed} only, not {side}: export it with --{name} {side}")
        sides.append(side)
    require_size(sessions.package, sides[0], sides[1])
    return sides[0], sides[1]
