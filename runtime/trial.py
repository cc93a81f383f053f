"""A picture by whatever a package does: for checks and measurements, which don't care what it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runtime.inputs import size_of
from runtime.manifest import Manifest, Package
from runtime.pipelines.conditioning import text_encoders
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.size_conditioning import REFINER
from runtime.pipelines.text_to_image import text_to_image
from runtime.scenes import draw, score_scenes
from runtime.session import Sessions


def begins(manifest: Manifest) -> bool:
    """Whether a package makes pictures from prompts alone: a refiner does not."""
    return bool(manifest.pipeline.get("time_ids", 0) != REFINER)


def needs(manifest: Manifest) -> tuple[str, ...]:
    """The components that `picture` runs."""
    encoders = (encoder["component"] for encoder in text_encoders(manifest.pipeline))
    return (*encoders, "unet", "vae_decoder", *(() if begins(manifest) else ("vae_encoder",)))


def picture(source: Package | Sessions, settings: Settings) -> Result:
    """Text to image; with a refiner image to image, from a drawn scene and through all its steps. Errors: those of the tasks."""
    package = source.package if isinstance(source, Sessions) else source
    if begins(package.manifest):
        return text_to_image(source, settings)
    height, width = size_of(package, settings.height, settings.width)
    scene = (draw(score_scenes()[0], 64) * 255).astype(np.uint8)
    return image_to_image(source, replace(settings, image=scene, strength=1.0, height=height, width=width))
