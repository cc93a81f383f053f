"""Text to image against diffusers' own pipeline on the same weights, with the same seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from runtime.compare import snr_db
from runtime.errors import CheckFailed, InputError
from runtime.manifest import Package
from runtime.pipelines.conditioning import guidance_embedding
from runtime.pipelines.settings import Settings
from runtime.pipelines.stable_diffusion import guide
from runtime.pipelines.text_to_image import text_to_image
from runtime.providers import provider
from runtime.session import Sessions

PROMPTS = ("a large red circle at the left on a white background", "a blue cross above a green square on a black background")
SEEDS = (3, 2**40 + 7)
# float32 on both sides: rounding of 2^-24 (145 dB) grows through some 300 layers a step and through the steps
LATENTS_DB = 80.0
NEAR = 2  # of 255: the product's promise for a picture

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pndm": (PNDMScheduler, {}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
}


def generators(seeds: tuple[int, ...] = SEEDS) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def far(picture: np.ndarray, expected: np.ndarray) -> int:
    """Largest difference between uint8 and float pictures of the same shape, in 255ths."""
    return int(np.abs(picture.astype(int) - (expected * 255).round().astype(int)).max())


@pytest.mark.parametrize(
    ("name", "eta"), [("pndm", 0.0), ("ddim", 0.0), ("ddim", 0.7), ("euler", 0.0), ("euler_ancestral", 0.0), ("dpmpp_2m", 0.0)]
)
def test_the_picture_is_diffusers(name: str, eta: float, tiny_package: Path, torch_pipeline: StableDiffusionPipeline) -> None:
    scheduler_class, config = SCHEDULERS[name]
    torch_pipeline.scheduler = scheduler_class.from_config(torch_pipeline.scheduler.config, **config)
    trajectory: list[np.ndarray] = []

    def record(_pipeline: object, _index: int, _timestep: int, kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        trajectory.append(kept["latents"].numpy().copy())
        return kept

    expected = torch_pipeline(
        list(PROMPTS), negative_prompt=["a small yellow triangle"] * 2, num_inference_steps=5, guidance_scale=4.0, eta=eta,
        generator=generators(), output_type="np", callback_on_step_end=record,
    ).images  # fmt: skip
    steps: list[tuple[Any, np.ndarray]] = []

    def on_step(index: int, timestep: Any, latents: np.ndarray, unconditional: np.ndarray | None, conditional: np.ndarray) -> None:
        assert index == len(steps)
        assert unconditional is not None
        assert unconditional.shape == conditional.shape == latents.shape
        steps.append((timestep, latents))

    settings = Settings(PROMPTS, SEEDS, negative="a small yellow triangle", steps=5, guidance=4.0, scheduler=name, eta=eta)
    result = text_to_image(Package.open(tiny_package), settings, on_step)
    assert [float(t) for t, _ in steps] == pytest.approx([float(t) for t in torch_pipeline.scheduler.timesteps])
    for (_, latents), wanted in zip(steps, trajectory, strict=True):
        assert snr_db(wanted, latents) > LATENTS_DB
    assert far(result.images, expected) <= NEAR
    assert result.settings.scheduler == name
    assert len(result.timings["unet"]) == len(steps)
    assert {name: len(seconds) for name, seconds in result.timings.items() if name != "unet"} == {"text_encoder": 1, "vae_decoder": 1}


def test_v_prediction_is_diffusers(changed: Any, torch_pipeline: StableDiffusionPipeline) -> None:
    """As in Stable Diffusion 2.1. What the network predicts is another matter: the arithmetic must be the same."""
    torch_pipeline.scheduler = DDIMScheduler.from_config(torch_pipeline.scheduler.config, prediction_type="v_prediction", clip_sample=False)
    expected = torch_pipeline(
        PROMPTS[0], num_inference_steps=4, guidance_scale=4.0, generator=generators()[:1], output_type="latent"
    ).images
    package = changed(lambda manifest: manifest["scheduler"].update(_class_name="DDIMScheduler", prediction_type="v_prediction"))
    result = text_to_image(Package.open(package), Settings(PROMPTS[:1], SEEDS[:1], steps=4, guidance=4.0))
    assert snr_db(expected.numpy(), result.latents) > LATENTS_DB
    assert result.settings.scheduler == "ddim"


def test_the_same_latents_give_diffusers_picture(tiny_package: Path, torch_pipeline: StableDiffusionPipeline) -> None:
    latents = np.random.default_rng(5).standard_normal((1, 4, 8, 8)).astype(np.float32)
    torch_pipeline.scheduler = EulerDiscreteScheduler.from_config(torch_pipeline.scheduler.config)
    expected = torch_pipeline(
        PROMPTS[0], num_inference_steps=3, guidance_scale=3.0, latents=torch.from_numpy(latents), output_type="np"
    ).images
    settings = Settings.one_prompt(PROMPTS[0], steps=3, guidance=3.0, scheduler="euler", latents=latents)
    assert far(text_to_image(Package.open(tiny_package), settings).images, expected) <= NEAR
    with pytest.raises(InputError, match=r"the latents are \[1, 4, 8, 8\] where these settings need \[2, 4, 8, 8\]"):
        text_to_image(Package.open(tiny_package), Settings(PROMPTS, SEEDS, latents=latents))


def test_a_picture_does_not_depend_on_its_batch(tiny_package: Path) -> None:
    together = text_to_image(Package.open(tiny_package), Settings(PROMPTS, SEEDS, steps=2, scheduler="euler_ancestral"))
    alone = text_to_image(Package.open(tiny_package), Settings(PROMPTS[1:], SEEDS[1:], steps=2, scheduler="euler_ancestral"))
    assert snr_db(alone.latents[0], together.latents[1]) > LATENTS_DB
    assert np.abs(together.images[1].astype(int) - alone.images[0]).max() <= 1
    assert np.abs(together.images[0].astype(int) - together.images[1]).max() > 30


class Counting(Sessions):
    """Sessions that write down the rows of each call of the U-Net."""

    def run(self, component: str, inputs: Any) -> dict[str, np.ndarray]:
        if component == "unet":
            self.rows = [*getattr(self, "rows", []), len(inputs["sample"])]
        return super().run(component, inputs)


def fix(batch: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        for value in model.graph.input:
            if value.name == "timestep":  # a scalar
                continue
            for axis, size in enumerate([batch, *([4, 8, 8] if value.name == "sample" else [])]):
                value.type.tensor_type.shape.dim[axis].dim_value = size
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch

    return edit


@pytest.mark.parametrize(
    ("batch", "guidance", "calls"), [(0, 4.0, [4]), (1, 4.0, [1] * 4), (2, 4.0, [2, 2]), (3, 4.0, [3, 3]), (0, 1.0, [2]), (2, 0.0, [2])]
)
def test_any_batch_of_the_graph_serves(batch: int, guidance: float, calls: list[int], tiny_package: Path, edit_graph: Any) -> None:
    settings = Settings(PROMPTS, SEEDS, steps=2, guidance=guidance, scheduler="ddim")
    expected = text_to_image(Package.open(tiny_package), settings)
    path = edit_graph("unet", fix(batch)) if batch else tiny_package
    with Counting(Package.open(path), provider("cpu")) as sessions:
        result = text_to_image(sessions, settings)
        assert sessions.rows == calls * 2
    assert snr_db(expected.latents, result.latents) > LATENTS_DB


def test_without_guidance_the_negative_prompt_is_not_asked(tiny_package: Path) -> None:
    seen: list[object] = []
    settings = Settings.one_prompt(PROMPTS[0], steps=2, guidance=1.0)
    text_to_image(Package.open(tiny_package), settings, lambda *step: seen.append(step[3]))
    assert seen
    assert not any(each is not None for each in seen)


def test_a_distilled_unet_gets_the_guidance_embedding(with_unet: Any, make_unet: Any, torch_pipeline: StableDiffusionPipeline) -> None:
    unet = make_unet(11, time_cond_proj_dim=33)
    pipeline = StableDiffusionPipeline(**{**torch_pipeline.components, "unet": unet}, requires_safety_checker=False)
    pipeline.scheduler = LCMScheduler.from_config(torch_pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(PROMPTS[0], num_inference_steps=3, guidance_scale=6.0, generator=generators()[:1], output_type="latent").images
    result = text_to_image(Package.open(with_unet(unet)), Settings(PROMPTS[:1], SEEDS[:1], steps=3, guidance=6.0, scheduler="lcm"))
    assert snr_db(expected.numpy(), result.latents) > LATENTS_DB
    reference = pipeline.get_guidance_scale_embedding(torch.tensor([5.0]), 33)
    # angles up to 5000 radians: their rounding, 2^-24 * 5000 = 3e-4, is the error of both
    np.testing.assert_allclose(guidance_embedding(5.0, 33), reference.numpy(), atol=1e-3)


def test_guidance_rescale_is_diffusers() -> None:
    rng = np.random.default_rng(8)
    unconditional, conditional = rng.standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    guided = unconditional + 5.0 * (conditional - unconditional)
    expected = rescale_noise_cfg(torch.from_numpy(guided), torch.from_numpy(conditional), 0.7).numpy()
    np.testing.assert_allclose(guide(unconditional, conditional, 5.0, 0.7), expected, rtol=0, atol=20 * 2**-23)


def test_the_config_switches_the_rescale_on(changed: Any, tiny_package: Path) -> None:
    settings = Settings.one_prompt(PROMPTS[0], steps=2, guidance=6.0)
    plain = text_to_image(Package.open(tiny_package), settings)
    rescaled = text_to_image(Package.open(changed(lambda m: m["pipeline"].update(guidance_rescale=0.7))), settings)
    assert snr_db(plain.latents, rescaled.latents) < 40


def spoil(name_of_weight: str, value: float) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        found = [t for t in model.graph.initializer if t.name.endswith(name_of_weight)]
        assert found, [t.name for t in model.graph.initializer]
        for tensor in found:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), value, np.float32), tensor.name))

    return edit


def test_nan_names_the_component_and_the_step(edit_graph: Any) -> None:
    path = edit_graph("unet", spoil("conv_out.bias", np.nan))
    with pytest.raises(CheckFailed, match=r"'unet' gave NaN at step 1 of 3 \(timestep 667\): the package is broken"):
        text_to_image(Package.open(path), Settings.one_prompt("x", steps=3, scheduler="ddim"))


def test_nan_of_the_decoder_is_its_own(edit_graph: Any) -> None:
    path = edit_graph("vae_decoder", spoil("conv_out.bias", np.nan))
    with pytest.raises(CheckFailed, match="'vae_decoder' gave NaN: the package is broken"):
        text_to_image(Package.open(path), Settings.one_prompt("x", steps=1))


def test_a_flat_picture_is_a_failure(edit_graph: Any) -> None:
    path = edit_graph("vae_decoder", spoil("conv_out.bias", 1e6))
    with pytest.raises(CheckFailed, match=r"'vae_decoder' made picture 0 one flat colour, \[255, 255, 255\]"):
        text_to_image(Package.open(path), Settings.one_prompt("x", steps=1))


def test_low_memory_holds_one_component_and_changes_nothing(tiny_package: Path) -> None:
    settings = Settings.one_prompt(PROMPTS[0], steps=2)
    held: list[tuple[str, ...]] = []
    with Sessions(Package.open(tiny_package), provider("cpu"), low_memory=True) as sessions:
        result = text_to_image(sessions, settings, lambda *_: held.append(sessions.loaded))
        assert set(held) == {("unet",)}
        assert sessions.loaded == ("vae_decoder",)
    with Sessions(Package.open(tiny_package), provider("cpu")) as sessions:
        expected = text_to_image(sessions, settings)
        assert sessions.loaded == ("text_encoder", "unet", "vae_decoder")
    np.testing.assert_array_equal(result.images, expected.images)


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"height": 65}, "a height of 65 is not possible: this package takes multiples of"),
        ({"width": -8}, "a width of -8 is not possible"),
        ({"steps": -1}, "-1 steps are not possible"),
        ({"guidance": float("nan")}, "guidance nan is impossible: give 0 or more"),
        ({"scheduler": "eulr"}, "there is no scheduler 'eulr' (the nearest is 'euler')"),
        ({"strength": 0.5}, "strength says how much of an image is changed: give an image with it"),
        ({"mask": np.zeros((8, 8), np.uint8)}, "a mask needs the image that it masks"),
        ({"seeds": (1, 2)}, "1 prompts need as many seeds, not 2"),
        ({"prompts": (), "seeds": ()}, "there is no prompt: give one, it may be empty"),
    ],
)
def test_impossible_settings_are_refused(others: dict[str, Any], sentence: str, tiny_package: Path) -> None:
    settings = Settings(**{"prompts": ("x",), "seeds": (0,), **others})
    with pytest.raises(InputError) as caught:
        text_to_image(Package.open(tiny_package), settings)
    assert sentence in str(caught.value)


def test_a_static_package_has_one_size(edit_graph: Any) -> None:
    path = edit_graph("unet", fix(1))
    with pytest.raises(InputError, match="this package makes pictures with a height of 64 only, not 128: export it with --height 128"):
        text_to_image(Package.open(path), Settings.one_prompt("x", height=128))
