"""Prompts, and a picture where there is one, to pictures by two experts: a base makes the noisy steps, a refiner the others.

SDXL's ensemble (Podell et al. 2023, section 2.5; Balaji et al. 2022), as diffusers has it with `denoising_end` and `denoising_start`.
"""

from __future__ import annotations

from dataclasses import replace

from runtime.errors import InputError
from runtime.manifest import Package
from runtime.pipelines import steps
from runtime.pipelines.image_to_image import noised
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.size_conditioning import REFINER
from runtime.pipelines.stable_diffusion import OnStep, Progress, StableDiffusion, opened
from runtime.pipelines.text_to_image import noise
from runtime.session import Sessions

HANDOVER = 0.8  # Podell et al. trained the refiner on the last fifth of the noise levels


def base_and_refiner(
    base: Package | Sessions,
    refiner: Package | Sessions,
    settings: Settings,
    handover: float = HANDOVER,
    on_step: OnStep | None = None,
    progress: Progress | None = None,
) -> Result:
    """`handover` is the share of the noise levels that the base denoises. Both plan the same number of steps, each by its own
    scheduler, and draw from one stream of noise per picture. What the settings leave open is the base's, but for the guidance.

    A base given as a Package, or with low memory, is out of memory before the refiner comes. `on_step` counts the steps of both.
    Errors: InputError for packages and settings that don't fit, CheckFailed for NaN and flat pictures.
    """
    if settings.mask is not None:
        raise InputError("a refiner takes no mask: inpaint with the base alone")
    with opened(base) as base_sessions, opened(refiner) as refiner_sessions:
        _check_pair(base_sessions.package, refiner_sessions.package)
        first = StableDiffusion(base_sessions, replace(settings, sizes=settings.sizes.for_base()), on_step, progress)
        first.timesteps = steps.before_handover(first.scheduler, first.timesteps, handover)
        asked = replace(
            settings, sizes=settings.sizes.for_refiner(), steps=first.settings.steps, height=first.settings.height,
            width=first.settings.width, image=None, strength=None, latents=None,
        )  # fmt: skip
        second = StableDiffusion(refiner_sessions, asked, _counted_on(on_step, len(first.timesteps)), progress)
        second.timesteps = steps.after_handover(second.scheduler, handover)
        second.noises = first.noises
        if first.scheduler.name != second.scheduler.name:
            raise InputError(
                f"the base samples with {first.scheduler.name} and the refiner with {second.scheduler.name}, whose latents are not alike: "
                "choose one scheduler for both"
            )

        conditioning = first.encode_prompts()
        latents = noise(first, settings) if settings.image is None else noised(first, settings.image)
        latents = first.denoise(latents, conditioning)
        if base_sessions.low_memory or isinstance(base, Package):
            base_sessions.close()
        conditioning = second.encode_prompts()
        result = second.finish(second.denoise(latents, conditioning))
    timings = {name: first.timings.get(name, []) + second.timings.get(name, []) for name in {**first.timings, **second.timings}}
    warnings = tuple(dict.fromkeys((*first.warnings, *result.warnings)))
    return replace(result, settings=first.settings, refiner_settings=second.settings, timings=timings, warnings=warnings)


def _check_pair(base: Package, refiner: Package) -> None:
    """Errors: InputError where the two are not a base and its refiner."""
    if base.manifest.pipeline.get("time_ids", 0) == REFINER:
        raise InputError(f"'{base.path}' is a refiner itself, which begins no picture: name a base package before its refiner")
    if (count := refiner.manifest.pipeline.get("time_ids", 0)) != REFINER:
        raise InputError(
            f"'{refiner.path}' is no refiner: its U-Net takes {count or 'no'} time ids where a refiner takes {REFINER}. "
            "Export one with 'python -m export sdxl-refiner'"
        )
    for key in ("latent_channels", "vae_scale_factor", "scaling_factor"):
        ours, others = base.manifest.pipeline[key], refiner.manifest.pipeline[key]
        if ours != others:
            name = key.replace("_", " ")
            raise InputError(f"the refiner can't go on where the base stops, their latents differ: {name} {ours} against {others}")


def _counted_on(on_step: OnStep | None, done: int) -> OnStep | None:
    """`on_step` with `done` steps before the first."""
    return None if on_step is None else lambda index, *rest: on_step(done + index, *rest)
