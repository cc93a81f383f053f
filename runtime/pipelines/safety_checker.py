"""The safety checker of packages that have one: pictures that it flags become black."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runtime.errors import InputError
from runtime.pipelines import batched
from runtime.pipelines.autoencoder import to_uint8
from runtime.session import Sessions

COMPONENT = "safety_checker"
CONFIG = Path("feature_extractor") / "preprocessor_config.json"


def check(sessions: Sessions, pictures: np.ndarray, timings: dict[str, list[float]]) -> tuple[np.ndarray, tuple[bool, ...]]:
    """`pictures` float32 [B, H, W, 3] in 0..1 -> the same with flagged ones black, and which those are. Errors: InputError."""
    file = sessions.package.path / CONFIG
    if not file.is_file():
        raise InputError(f"the package has a safety checker and no {CONFIG.as_posix()}: export it again, or use --no-safety-checker")
    clip_input = clip_pixels(to_uint8(pictures), json.loads(file.read_text(encoding="utf-8")))
    outputs = batched.run(sessions, COMPONENT, {"clip_input": clip_input, "images": pictures}, timings)
    flagged = tuple(bool(flag) for flag in outputs["has_nsfw_concepts"])
    return outputs["out_images"].astype(np.float32), flagged


def clip_pixels(pictures: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """CLIP's preprocessing (Radford et al. 2021) of uint8 [B, H, W, 3], by a preprocessor_config.json -> float32 [B, 3, side, side].

    The shortest side is resized with a bicubic filter, the centre is cut out, and each channel gets the training set's mean and
    deviation.
    """
    shortest = _side(config["size"], "shortest_edge")
    side = _side(config["crop_size"], "height")
    mean, deviation = (np.asarray(config[key], np.float32) for key in ("image_mean", "image_std"))
    rows = []
    for picture in pictures:
        height, width = picture.shape[:2]
        longest = int(shortest * max(height, width) / min(height, width))
        size = (shortest, longest) if width <= height else (longest, shortest)
        resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
        cut = resized[top : top + side, left : left + side].astype(np.float32) / 255.0
        rows.append(((cut - mean) / deviation).transpose(2, 0, 1))
    return np.stack(rows)


def _side(value: int | dict[str, int], key: str) -> int:
    """Older configurations hold a number where newer ones hold {key: number}."""
    return value if isinstance(value, int) else value[key]
