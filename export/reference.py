"""What torch and diffusers make of a checkpoint: the oracle that a package is held against.

Components one by one on seeded inputs, then a whole trajectory with guidance through diffusers' own scheduler and transformers' own
tokenizer. One module at a time is in memory.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from transformers import CLIPTokenizer

from export.component import Component
from export.families import family_of
from export.families.vae import VaeDecoder
from export.weights import Checkpoint
from runtime.noise import Noise

Arrays = dict[str, np.ndarray]
FULL_STEPS, QUICK_STEPS = 20, 2
QUICK_SIDE = 512  # pixels of the quick check's pictures, at most
PROMPTS = {"tiny": "a red circle above a blue square on a yellow background"}
PROMPT = "a photo of an astronaut riding a horse on mars"


@dataclass(frozen=True)
class Walk:
    """One trajectory to be taken by torch and by the package alike. `latents` float32 [1, 4, h, w], unit variance; `more_channels`
    [1, C, h, w] are what an inpainting U-Net takes beside them, None for the others."""

    prompt: str
    steps: int
    guidance: float
    seed: int
    latents: np.ndarray
    more_channels: np.ndarray | None


@dataclass(frozen=True)
class Trajectory:
    """What happened on a walk: token ids [1, 77] of the prompt, the scheduler's name, timesteps, latents after each step, the U-Net's
    outputs (without, with the prompt) at each step, and the picture, uint8 [H, W, 3]."""

    ids: np.ndarray
    scheduler: str
    timesteps: list[float]
    latents: list[np.ndarray]
    predicted: list[tuple[np.ndarray, np.ndarray]]
    picture: np.ndarray


@dataclass(frozen=True)
class Oracle:
    """Everything that torch said: {component: (inputs, outputs)}, and the walk with its trajectory."""

    components: dict[str, tuple[Arrays, Arrays]]
    walk: Walk
    trajectory: Trajectory


def ask(checkpoint: Checkpoint, pipeline: dict[str, Any], check: str, work: Path, step: Callable[[str], object] = str) -> Oracle:
    """Runs a checkpoint in torch. `pipeline` is the package's (see Manifest), `check` full or quick; `step` is told what begins.

    A dynamic package is asked at sides that it was not traced at: the components at half the size and not square, the walk at the
    model's own size, with `quick` at 512 pixels at most.
    """
    height, width, factor, dynamic = (pipeline[key] for key in ("height", "width", "vae_scale_factor", "dynamic"))
    if check == "quick" and dynamic:
        height, width = min(height, QUICK_SIDE), min(width, QUICK_SIDE)
    sides = (height // 2 // factor * factor, width // 2 // factor * factor + factor) if dynamic else (height, width)
    components = {}
    for name, build in family_of(checkpoint).components(checkpoint, None if dynamic else (height, width), pipeline["batch"]):
        step(f"torch: {name}")
        component = build()
        inputs = seeded_inputs(component, *sides, factor, batch=max(1, pipeline["batch"]))
        components[name] = (inputs, component_outputs(component, inputs))
        del component
        gc.collect()  # the module's mapped weights leave memory before the next one's come
    step("torch: trajectory")
    taken = walk(PROMPTS.get(checkpoint.alias, PROMPT), FULL_STEPS if check == "full" else QUICK_STEPS, pipeline["guidance"], height, width,
                 checkpoint.configs["unet"], factor)
    return Oracle(components, taken, torch_trajectory(checkpoint, taken, work))


def walk(prompt: str, steps: int, guidance: float, height: int, width: int, config: dict[str, Any], factor: int, seed: int = 0) -> Walk:
    """A walk from seeded noise for pictures of `height` x `width` pixels; `config` is the U-Net's, `factor` the VAE's."""
    noise = Noise(seed)
    shape = (1, int(config["out_channels"]), height // factor, width // factor)
    latents = noise.normal(shape)
    extra = int(config["in_channels"]) - shape[1]
    return Walk(prompt, steps, guidance, seed, latents, noise.normal((1, extra, *shape[2:])) if extra else None)


def seeded_inputs(component: Component, height: int, width: int, factor: int, batch: int = 1) -> Arrays:
    """Inputs for one component, from a generator seeded by the component's name, for pictures of `height` x `width` pixels.

    Latents and embeddings are standard normal, pictures uniform, ids random words between start and end marks.
    """
    rng = np.random.default_rng(list(hashlib.sha256(component.name.encode()).digest()[:8]))
    made: Arrays = {}
    for name, example in component.example_inputs.items():
        shape = [batch, *example.shape[1:]] if example.ndim else []
        if name in ("sample", "latent_sample"):
            scale = 1 if component.name == "vae_encoder" else factor
            shape[2:] = [height // scale, width // scale]
        if name == "input_ids":
            vocabulary = int(str(component.config["vocab_size"]))
            ids = rng.integers(2, vocabulary - 2, shape)
            ids[:, -8:] = vocabulary - 1  # the highest id ends a CLIP prompt, and its first place is what is pooled
            made[name] = ids
        elif name == "timestep":
            made[name] = np.asarray(501.0, np.float32)
        elif name == "images":
            made[name] = rng.random((batch, height, width, 3), np.float32)
        elif component.name == "vae_encoder":
            made[name] = rng.uniform(-1, 1, shape).astype(np.float32)
        else:
            made[name] = rng.standard_normal(shape, np.float32)
    return made


@torch.no_grad()
def component_outputs(component: Component, inputs: Arrays) -> Arrays:
    """The module's outputs by name, as torch computes them in float32."""
    given = [torch.from_numpy(np.asarray(inputs[name])) for name in component.example_inputs]
    outputs = component.module(*given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: output.numpy() for name, output in zip(component.outputs, outputs, strict=True)}


@torch.no_grad()
def torch_trajectory(checkpoint: Checkpoint, taken: Walk, work: Path) -> Trajectory:
    """Takes a walk with the checkpoint's modules, diffusers' scheduler and transformers' tokenizer."""
    ids = _ids(checkpoint, ["", taken.prompt], work)
    embeddings = checkpoint.module("text_encoder")(input_ids=ids)[0]

    config = family_of(checkpoint).scheduler_config(checkpoint)
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(taken.steps)
    generator = torch.Generator().manual_seed(taken.seed)
    stochastic = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    unet = checkpoint.module("unet")
    latents = torch.from_numpy(taken.latents) * scheduler.init_noise_sigma
    torch.randn(latents.shape, generator=generator)  # what the walk starts with: the steps' own noise comes after it in the stream
    timesteps: list[float] = []
    after: list[np.ndarray] = []
    predicted: list[tuple[np.ndarray, np.ndarray]] = []
    for timestep in scheduler.timesteps:
        sample = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        if taken.more_channels is not None:
            more = torch.from_numpy(taken.more_channels)
            sample = torch.cat([sample, torch.cat([more, more])], dim=1)
        unconditional, conditional = unet(sample, timestep, embeddings, return_dict=False)[0].chunk(2)
        guided = unconditional + taken.guidance * (conditional - unconditional)
        latents = scheduler.step(guided, timestep, latents, return_dict=False, **stochastic)[0]
        timesteps.append(float(timestep))
        after.append(latents.numpy())
        predicted.append((unconditional.numpy(), conditional.numpy()))
    del unet
    decoder = VaeDecoder(checkpoint.module("vae"))
    picture = decoder(latents / checkpoint.configs["vae"]["scaling_factor"])[0].permute(1, 2, 0)
    pixels = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Trajectory(ids[1:].numpy(), config["_class_name"], timesteps, after, predicted, pixels)


def _ids(checkpoint: Checkpoint, texts: list[str], work: Path) -> torch.Tensor:
    """Token ids by transformers' tokenizer, from the checkpoint's files."""
    folder = work / "reference-tokenizer"
    folder.mkdir(exist_ok=True)
    for name, path in checkpoint.files.items():
        if name.startswith("tokenizer/"):
            (folder / Path(name).name).write_bytes(path.read_bytes())
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids: torch.Tensor = tokenizer(texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                                  return_tensors="pt").input_ids
    return ids
