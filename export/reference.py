"""What torch and diffusers make of a checkpoint: the oracle that a package is held against.

Components one by one on seeded inputs, then a whole trajectory through diffusers' own pipeline and transformers' own tokenizers. Weights
stay in the file that they are mapped from.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import CLIPTokenizer

from export.architecture import TOKENIZERS
from export.component import Component
from export.families import family_of
from export.families.latents import scale_factor
from export.weights import Checkpoint
from runtime.noise import Noise

Arrays = dict[str, np.ndarray]
FULL_STEPS, FEW_STEPS, QUICK_STEPS = 20, 4, 2  # few: where the package's own number is as small
QUICK_SIDE = 512  # pixels of the quick check's pictures, at most
STRENGTH = 0.5  # of an image to image
PROMPTS = {"tiny": "a red circle above a blue square on a yellow background"}
PROMPT = "a photo of an astronaut riding a horse on mars"


@dataclass(frozen=True, eq=False)
class Walk:
    """One trajectory to be taken by torch and by the package alike, for pictures of `height` x `width` pixels.

    `prompts`: under guidance the one prompt; without it a picture is made of no prompt too, from the same noise, so that what the prompt
    does can be told. `latents` float32 [pictures, 4, h, w], unit variance, begin a text to image; where `image`, uint8 [height, width, 3],
    is given, it begins an image to image, and with a `mask`, uint8 [height, width], an inpainting. The steps' noise comes from `seed`.
    """

    prompts: tuple[str, ...]
    steps: int
    guidance: float
    seed: int
    height: int
    width: int
    latents: np.ndarray | None = None
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    strength: float | None = None

    @property
    def prompt(self) -> str:
        """The prompt that is to be heard."""
        return self.prompts[-1]


@dataclass(frozen=True)
class Trajectory:
    """What happened on a walk: each tokenizer's ids [1, 77] of the prompt, the scheduler's name, timesteps, latents after each step, the
    U-Net's outputs (without, with the prompt) at each step, and the picture of the prompt, uint8 [H, W, 3]."""

    ids: dict[str, np.ndarray]
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
    steps = QUICK_STEPS if check == "quick" else min(FULL_STEPS, max(pipeline["steps"], FEW_STEPS))
    taken = walk(checkpoint, PROMPTS.get(checkpoint.alias, PROMPT), steps, pipeline["guidance"], height, width)
    return Oracle(components, taken, torch_trajectory(checkpoint, taken, work))


def walk(checkpoint: Checkpoint, prompt: str, steps: int, guidance: float, height: int, width: int, seed: int = 0) -> Walk:
    """A walk that a checkpoint can take: from noise, or for an inpainting model or a refiner from a picture of noise."""
    unet, vae = checkpoint.configs["unet"], checkpoint.configs["vae"]
    guided = guidance > 1 and not unet.get("time_cond_proj_dim")
    taken = partial(Walk, (prompt,) if guided else ("", prompt), steps, guidance, seed, height, width)
    inpaints = unet["in_channels"] != vae["latent_channels"]
    if not inpaints and checkpoint.family != "sdxl-refiner":
        scale = scale_factor(vae)
        latents = Noise(seed).normal((1, int(vae["latent_channels"]), height // scale, width // scale))
        return taken(latents=np.repeat(latents, 1 if guided else 2, axis=0))
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    if inpaints:
        return taken(image=image, mask=np.where(np.arange(width) < width // 2, 255, 0).astype(np.uint8)[None].repeat(height, axis=0))
    return taken(image=image, strength=STRENGTH)


def seeded_inputs(component: Component, height: int, width: int, factor: int, batch: int = 1, seed: tuple[int, ...] = ()) -> Arrays:
    """Inputs for one component, from a generator seeded by the component's name and `seed`, for pictures of `height` x `width` pixels.

    Latents and embeddings are standard normal, pictures uniform, ids random words between start and end marks, sizes whole numbers.
    """
    rng = np.random.default_rng([*hashlib.sha256(component.name.encode()).digest()[:8], *seed])
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
        elif name == "time_ids":
            made[name] = rng.integers(0, 1024, shape).astype(np.float32)
        elif name == "images":
            made[name] = rng.random((batch, height, width, 3), np.float32)
        elif component.name == "vae_encoder":
            made[name] = rng.uniform(-1, 1, shape).astype(np.float32)
        else:
            made[name] = rng.standard_normal(shape, np.float32)
    return made


@contextmanager
def contiguous_norms(module: torch.nn.Module) -> Iterator[None]:
    """Gives every GroupNorm in `module` pictures with the channels first, as long as the block lasts.

    Behind the attention of a VAE pictures of a batch have their channels last in memory, and of those torch 2.13 sums up a whole group one
    number after the other: at 512x512 its norm is 86 to 100 dB from float64, where it is 140 dB and more with the channels first.
    """
    norms = [each for each in module.modules() if isinstance(each, torch.nn.GroupNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, arguments: (arguments[0].contiguous(),)) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def component_outputs(component: Component, inputs: Arrays) -> Arrays:
    """The module's outputs by name, as torch computes them in float32."""
    given = [torch.from_numpy(np.asarray(inputs[name])) for name in component.example_inputs]
    with contiguous_norms(component.module):
        outputs = component.module(*given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: output.numpy() for name, output in zip(component.outputs, outputs, strict=True)}


@torch.no_grad()
def torch_trajectory(checkpoint: Checkpoint, taken: Walk, work: Path) -> Trajectory:
    """Takes a walk with diffusers' pipeline on the checkpoint's modules."""
    pipeline = diffusers_pipeline(checkpoint, taken, work)
    timesteps: list[float] = []
    after: list[np.ndarray] = []
    predicted: list[tuple[np.ndarray, np.ndarray]] = []

    def on_prediction(_module: Any, _inputs: Any, output: tuple[torch.Tensor]) -> None:
        without, conditioned = np.split(output[0].numpy().copy(), 2)
        predicted.append((without, conditioned))

    def on_step(_pipeline: Any, _index: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        timesteps.append(float(timestep))
        after.append(tensors["latents"].numpy().copy())
        return {}

    pipeline.unet.register_forward_hook(on_prediction)
    generators = [torch.Generator().manual_seed(taken.seed) for _ in taken.prompts]
    pictures = pipeline(list(taken.prompts), num_inference_steps=taken.steps, guidance_scale=taken.guidance, generator=generators,
                        output_type="np", callback_on_step_end=on_step, **beginning(taken)).images
    tokenizers = {name: getattr(pipeline, name) for name in ("tokenizer", "tokenizer_2") if getattr(pipeline, name, None) is not None}
    ids = {name: _ids(tokenizer, taken.prompt) for name, tokenizer in tokenizers.items()}
    picture = (pictures[-1] * 255).round().astype(np.uint8)
    return Trajectory(ids, type(pipeline.scheduler).__name__, timesteps, after, predicted, picture)


def diffusers_pipeline(checkpoint: Checkpoint, taken: Walk, work: Path) -> Any:
    """diffusers' own pipeline for a walk."""
    folder = work / "reference"
    for name, path in checkpoint.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(path.read_bytes())
    scheduler = getattr(diffusers, checkpoint.scheduler["_class_name"]).from_config(checkpoint.scheduler)
    parts = {name: checkpoint.module(name) for name in checkpoint.configs if name != "safety_checker"}
    parts |= {name: CLIPTokenizer.from_pretrained(folder / name) for name in TOKENIZERS.values() if (folder / name).is_dir()}
    pipeline: Any
    if checkpoint.family == "sd":
        kind = getattr(diffusers, family_of(checkpoint).index(checkpoint)["_class_name"])
        pipeline = kind(**parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    else:
        refines = checkpoint.family == "sdxl-refiner"
        kind = diffusers.StableDiffusionXLImg2ImgPipeline if refines else diffusers.StableDiffusionXLPipeline
        options = {"requires_aesthetics_score": True, "text_encoder": None, "tokenizer": None} if refines else {}
        zeros = checkpoint.options.get("force_zeros_for_empty_prompt", True)
        pipeline = kind(**parts, **options, scheduler=scheduler, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def beginning(taken: Walk) -> dict[str, Any]:
    """The arguments that begin a walk in diffusers."""
    if taken.latents is not None:
        return {"latents": torch.from_numpy(taken.latents), "height": taken.height, "width": taken.width}
    image = {"image": Image.fromarray(taken.image)} if taken.image is not None else {}
    if taken.mask is not None:
        return {**image, "mask_image": Image.fromarray(taken.mask), "height": taken.height, "width": taken.width}
    return {**image, "strength": taken.strength}


def _ids(tokenizer: CLIPTokenizer, text: str) -> np.ndarray:
    """Token ids [1, 77] by transformers' tokenizer."""
    ids: np.ndarray = tokenizer([text], padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                                return_tensors="np").input_ids
    return ids
