"""What the graphs of latent diffusion are traced at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.errors import InputError

# Latents of a dynamic package: no multiple of anything, so that nothing specializes (a U-Net's upsampling takes its sizes from the skip
# connections then).
DYNAMIC = (18, 26)


@dataclass(frozen=True)
class Latents:
    """`height` and `width` of the latents, and a `batch` of them."""

    batch: int
    height: int
    width: int


def scale_factor(vae: dict[str, Any]) -> int:
    """Pixels per latent along a side, by the VAE's config."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def latents(configs: dict[str, dict[str, Any]], size: tuple[int, int] | None, batch: int) -> Latents:
    """`size` is (height, width) in pixels of a static package, None for a dynamic one. Errors: InputError for an impossible size."""
    if size is None:
        return Latents(2, *DYNAMIC)
    scale = scale_factor(configs["vae"])
    if size[0] % scale or size[1] % scale:
        raise InputError(f"{size[0]}x{size[1]} is not possible: height and width must be multiples of {scale}")
    return Latents(batch, size[0] // scale, size[1] // scale)
