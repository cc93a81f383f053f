"""Pictures to latents and back, through the package's VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from runtime.pipelines import batched
from runtime.session import Sessions


@dataclass(frozen=True, eq=False)
class Posterior:
    """The encoder's diagonal Gaussian over latents (Kingma & Welling 2014), each array float32 [B, C, h, w], unscaled."""

    mean: np.ndarray
    deviation: np.ndarray

    def mode(self) -> np.ndarray:
        return self.mean

    def sample(self, normal: Callable[[Sequence[int]], np.ndarray], rows: int) -> np.ndarray:
        """`rows` draws, float32 [rows, C, h, w], with standard normal numbers from `normal(shape)`."""
        return self.mean + self.deviation * normal((rows, *self.mean.shape[1:]))


def encode(sessions: Sessions, pixels: np.ndarray, timings: dict[str, list[float]]) -> Posterior:
    """`pixels` float32 [B, 3, H, W] in -1..1 -> the posterior over their latents. Errors: InputError."""
    moments = batched.run(sessions, "vae_encoder", {"sample": pixels}, timings)["latent_parameters"].astype(np.float32)
    mean, log_variance = np.split(moments, 2, axis=1)
    return Posterior(mean, np.exp(0.5 * log_variance.clip(-30.0, 20.0)))


def decode(sessions: Sessions, latents: np.ndarray, scaling_factor: float, timings: dict[str, list[float]]) -> np.ndarray:
    """Scaled latents float32 [B, C, h, w] -> float32 [B, H, W, 3] in 0..1, NaN where the decoder gives NaN.

    One picture at a time: the decoder's activations are the largest of the whole pipeline.
    """
    scaled = latents / np.float32(scaling_factor)
    pixels = batched.run(sessions, "vae_decoder", {"latent_sample": scaled}, timings, at_most=1)["sample"]
    return (pixels.astype(np.float32) * 0.5 + 0.5).clip(0.0, 1.0).transpose(0, 2, 3, 1)


def pixels_of(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture uint8 [h, w, 3] -> float32 [1, 3, height, width] in -1..1, resized with Lanczos' filter."""
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS), np.float32)
    return (resized / 255.0 * 2.0 - 1.0).transpose(2, 0, 1)[None]


def mask_of(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask uint8 [h, w] -> float32 [1, 1, height, width] of 0 (keep) and 1 (paint anew)."""
    resized = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.LANCZOS), np.float32)
    return (resized / 255.0 >= 0.5).astype(np.float32)[None, None]


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """Float [B, H, W, 3] in 0..1 -> uint8."""
    return (pictures * 255).round().astype(np.uint8)
