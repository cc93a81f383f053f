"""Seeded inputs for each graph of a package: what benchmarks and comparisons feed where no picture is wanted."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from runtime.errors import InputError
from runtime.manifest import Package, Port
from runtime.pipelines.size_conditioning import SizeConditioning
from runtime.tokenizer import Tokenizer

PROMPT = "a red circle above a blue square on a yellow background"
TIMESTEP = 500  # the middle of the 1,000 that all these models were trained with
TOKENS = 77  # CLIP's context


def size_of(package: Package, height: int | None, width: int | None) -> tuple[int, int]:
    """The picture's height and width in pixels: as asked for, else the package's. Errors: InputError for an impossible size."""
    pipeline = package.manifest.pipeline
    multiple = pipeline.get("size_multiple", pipeline["vae_scale_factor"])
    sides = []
    for name, asked in (("height", height), ("width", width)):
        side = pipeline[name] if asked is None else asked
        if side <= 0 or side % multiple:
            raise InputError(f"a {name} of {side} is not possible: this package takes multiples of {multiple}")
        if not pipeline["dynamic"] and "sizes" not in pipeline and side != pipeline[name]:
            raise InputError(f"this package has a {name} of {pipeline[name]} only, not {side}: export it with --{name} {side}")
        sides.append(side)
    require_size(package, sides[0], sides[1])
    return sides[0], sides[1]


def require_size(package: Package, height: int, width: int) -> None:
    """Errors: InputError where a package has graphs for several sizes, and this is none of them."""
    sizes = package.manifest.pipeline.get("sizes")
    if sizes is not None and [height, width] not in sizes:
        known = " and ".join(f"{other_height} x {other_width}" for other_height, other_width in sizes)
        raise InputError(
            f"this package makes pictures of {known} (height x width), not of {height} x {width}: export it with that size too"
        )


def example_inputs(package: Package, component: str, height: int, width: int, batch: int = 1) -> dict[str, np.ndarray]:
    """Inputs of one component for a picture of `height` x `width` pixels: token ids of a prompt, sizes, else standard normal numbers,
    for pictures cut off at -1 and 1.

    Axes that the graph fixes keep their size, `batch` included. The same arguments give the same numbers on every machine.
    Errors: InputError where the package has no such component, or a graph has a free axis of unknown meaning.
    """
    package.file(component)
    free = free_axes(package, component, height, width) | {"batch_size": batch}
    inputs = {}
    entry = package.manifest.components[component]
    batch_of_first = entry.inputs[0].shape[0]
    others = (each for each in entry.sizes if (each.height, each.width) == (height, width) and each.inputs[0].shape[0] == batch_of_first)
    for port in next(others, entry).inputs:
        if unknown := [axis for axis in port.shape if isinstance(axis, str) and axis not in free]:
            raise InputError(f"'{component}' has a free axis '{unknown[0]}' at '{port.name}', whose size nobody can guess")
        shape = tuple(free[axis] if isinstance(axis, str) else axis for axis in port.shape)
        if port.name == "time_ids":
            sizes = SizeConditioning().filled(package.manifest.pipeline, height, width).time_ids()[1]
            inputs[port.name] = np.broadcast_to(sizes, shape).astype(port.dtype)
        else:
            inputs[port.name] = _values(package, component, port, shape)
    return inputs


def free_axes(package: Package, component: str, height: int, width: int) -> dict[str, int]:
    """The sizes that a component's free axes take for a picture of `height` x `width` pixels, but for the batch."""
    factor = 1 if component == "safety_checker" else package.manifest.pipeline["vae_scale_factor"]
    return {
        "sequence_length": TOKENS,
        "height": height // factor,  # the U-Net's latents; the safety checker's pixels
        "width": width // factor,
        "latent_height": height // factor,
        "latent_width": width // factor,
        "sample_height": height,
        "sample_width": width,
    }


def batch_of(inputs: Mapping[str, np.ndarray]) -> int:
    """Rows of the first input, which is the batch of every graph here."""
    return len(next(iter(inputs.values())))


def _values(package: Package, component: str, port: Port, shape: tuple[int, ...]) -> np.ndarray:
    if port.name == "input_ids":
        folder = "tokenizer_2" if component == "text_encoder_2" else "tokenizer"
        ids = Tokenizer.from_folder(package.path / folder).encode(PROMPT)
        return np.broadcast_to(ids, shape).astype(port.dtype)
    if port.name == "timestep":
        return np.full(shape, TIMESTEP, port.dtype)
    # RandomState's stream is frozen across numpy's versions, default_rng's is not
    rng = np.random.RandomState(zlib.crc32(f"{component}/{port.name}".encode()))
    values = rng.standard_normal(shape).astype(port.dtype)
    return np.clip(values, -1, 1) if component == "vae_encoder" else values  # pictures end at black and white, and ranges with them
