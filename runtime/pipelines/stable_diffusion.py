"""What the tasks of Stable Diffusion share, 1.x to XL and those of few steps: noise, guidance, the denoising loop, decoding (Rombach et al.
2022; Podell et al. 2023). What the models are told beside the latents is conditioning.py's.

Noise is drawn in diffusers' order, from one generator per picture: the same seed gives the same picture as diffusers does with
`generator=[torch.Generator().manual_seed(seed) for seed in seeds]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from runtime import schedulers
from runtime.errors import CheckFailed
from runtime.manifest import Package
from runtime.noise import Noise
from runtime.pipelines import autoencoder, batched, safety_checker, steps
from runtime.pipelines.conditioning import Conditioning, check_finite, check_time_ids, condition, guidance_width
from runtime.pipelines.settings import Resolved, Result, Settings, resolve
from runtime.session import Sessions, own_provider

# (index, timestep, latents after the step, U-Net's output without and with the prompt; without: None where there is no guidance)
OnStep = Callable[[int, Any, np.ndarray, np.ndarray | None, np.ndarray], None]
# wraps the timesteps, as tqdm does
Progress = Callable[[np.ndarray], Iterable[Any]]


@contextmanager
def opened(source: Package | Sessions) -> Iterator[Sessions]:
    """Sessions as they are, or until the end of the block those of a package on what it is made for."""
    if isinstance(source, Sessions):
        yield source
    else:
        with Sessions(source, own_provider(source)) as sessions:
            yield sessions


class StableDiffusion:
    """One generation. The tasks call its methods in the order of the noise: encode prompts, start latents, denoise, finish.

    `timesteps` are those of the steps that are made, `guided` tells whether each takes two rows of the U-Net per picture.
    """

    def __init__(self, sessions: Sessions, settings: Settings, on_step: OnStep | None = None, progress: Progress | None = None) -> None:
        """Errors: InputError for settings that the package can't do."""
        manifest = sessions.package.manifest
        self.sessions = sessions
        self.scheduler = schedulers.make({**manifest.scheduler, "eta": settings.eta}, settings.scheduler)
        check_time_ids(sessions)
        self.settings: Resolved = resolve(settings, sessions, self.scheduler)
        below = steps.below_strength(self.scheduler, sessions)
        self.timesteps = steps.plan(self.scheduler, self.settings.steps, self.settings.strength, below)
        self.on_step = on_step
        self.progress: Progress = progress or iter
        self.timings: dict[str, list[float]] = {}
        self.warnings: list[str] = []
        self.noises = [Noise(seed) for seed in self.settings.seeds]
        self.scaling_factor: float = manifest.pipeline["scaling_factor"]
        self.unet_inputs = sessions.inputs("unet")
        # a U-Net distilled with guidance takes the scale as an input and is called once (Meng et al. 2023)
        self.guided = self.settings.guidance > 1 and not guidance_width(sessions)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[pictures, channels, height, width] of the latents."""
        pipeline = self.sessions.package.manifest.pipeline
        factor = pipeline["vae_scale_factor"]
        pictures = len(self.settings.prompts)
        return pictures, pipeline["latent_channels"], self.settings.height // factor, self.settings.width // factor

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """Float32 standard normal [pictures, ...], each picture's row from its own generator."""
        return np.concatenate([noise.normal((1, *shape[1:])) for noise in self.noises])

    def encode_prompts(self) -> Conditioning:
        """What the U-Net is given beside the latents; under guidance the rows of the negative prompt first."""
        inputs, warnings = condition(self.sessions, self.settings, self.guided, self.timings)
        self.warnings += warnings
        if self.settings.negative and not self.guided:
            self.warnings.append("the negative prompt is not used: without guidance there is nothing to lead away from")
        return inputs

    def denoise(
        self,
        latents: np.ndarray,
        conditioning: Conditioning,
        more_channels: np.ndarray | None = None,
        after_step: Callable[[int, np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """The loop: predict, guide, step. `more_channels` [B, C, h, w] stand behind the latents in the U-Net's input; `after_step`
        changes the latents of a step. Errors: CheckFailed where the U-Net gives NaN or infinity.
        """
        for index, timestep in enumerate(self.progress(self.timesteps)):
            sample = self.scheduler.scale_model_input(latents, timestep)
            if more_channels is not None:
                sample = np.concatenate([sample, more_channels], axis=1)
            unconditional, conditional = self._predict(sample, timestep, conditioning)
            where = f" at step {index + 1} of {len(self.timesteps)} (timestep {timestep})"
            for predicted in (unconditional, conditional):
                if predicted is not None:
                    check_finite("unet", predicted, where)
            guided = guide(unconditional, conditional, self.settings.guidance, self.settings.guidance_rescale)
            latents = self.scheduler.step(guided, timestep, latents, noise=self.normal)
            if after_step is not None:
                latents = after_step(index, latents)
            check_finite("scheduler", latents, where)
            if self.on_step is not None:
                self.on_step(index, timestep, latents, unconditional, conditional)
        return latents

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        """`pixels` [1, 3, H, W] in -1..1 -> scaled latents [B, C, h, w], one draw from the posterior per picture."""
        posterior = autoencoder.encode(self.sessions, pixels, self.timings)
        latents = posterior.sample(self.normal, len(self.noises)) * np.float32(self.scaling_factor)
        check_finite("vae_encoder", latents)
        return latents

    def finish(self, latents: np.ndarray) -> Result:
        """Decodes, asks the safety checker, and hands over. Errors: CheckFailed for NaN and for a picture of one colour."""
        pictures = autoencoder.decode(self.sessions, latents, self.scaling_factor, self.timings)
        check_finite("vae_decoder", pictures)
        for index, picture in enumerate(autoencoder.to_uint8(pictures)):
            if (picture == picture[0, 0]).all():
                raise CheckFailed(f"'vae_decoder' made picture {index} one flat colour, {picture[0, 0].tolist()}: the package is broken")
        flagged = (False,) * len(pictures)
        if self.settings.safety_checker and safety_checker.COMPONENT in self.sessions:
            pictures, flagged = safety_checker.check(self.sessions, pictures, self.timings)
        self.warnings += [f"the safety checker blackened picture {index}" for index, flag in enumerate(flagged) if flag]
        images = autoencoder.to_uint8(pictures)
        return Result(images, latents, self.settings, self.timings, flagged, tuple(self.warnings))

    def _predict(self, sample: np.ndarray, timestep: Any, conditioning: Conditioning) -> tuple[np.ndarray | None, np.ndarray]:
        """The U-Net's output without the prompt (None where there is no guidance) and with it, float32 [B, C, h, w] each."""
        rows = np.concatenate([sample, sample]) if self.guided else sample
        inputs = {"sample": rows, "timestep": np.asarray(timestep), **conditioning}
        predicted = batched.run(self.sessions, "unet", inputs, self.timings)["out_sample"].astype(np.float32)
        if not self.guided:
            return None, predicted
        unconditional, conditional = np.split(predicted, 2)
        return unconditional, conditional


def guide(unconditional: np.ndarray | None, conditional: np.ndarray, scale: float, rescale: float = 0.0) -> np.ndarray:
    """u + scale (c - u) (Ho & Salimans 2022, eq. 6), its deviation mixed back by `rescale` (Lin et al. 2024, section 3.4)."""
    if unconditional is None:
        return conditional
    guided = unconditional + np.float32(scale) * (conditional - unconditional)
    if rescale > 0:
        axes = tuple(range(1, guided.ndim))
        ratio = conditional.std(axis=axes, keepdims=True, ddof=1) / guided.std(axis=axes, keepdims=True, ddof=1)
        guided = guided * (np.float32(rescale) * ratio + np.float32(1 - rescale))
    return guided
