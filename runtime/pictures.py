"""Picture files: read as arrays, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from runtime.errors import InputError


def read(path: Path, mode: str = "RGB") -> np.ndarray:
    """The picture as uint8 [H, W, 3], or [H, W] for the mode "L", turned as its camera says. Errors: InputError."""
    if not path.is_file():
        raise InputError(f"there is no picture at '{path}'")
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"'{path}' can't be read as a picture: {error}") from error


def write_png(path: Path, image: np.ndarray, texts: Mapping[str, str]) -> None:
    """Writes uint8 [H, W, 3] with text chunks, through a file beside it that is renamed at the end. Errors: InputError."""
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_itxt(key, text)
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(staged, format="PNG", pnginfo=chunks)
        staged.replace(path)
    except OSError as error:
        raise InputError(f"can't write '{path}': {error.strerror or error}") from error
    finally:
        staged.unlink(missing_ok=True)
