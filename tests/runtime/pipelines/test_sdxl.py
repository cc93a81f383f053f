"""SDXL's base and refiner, alone and handed over, against diffusers' own pipelines on the same modules, with the same seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch_packages
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from PIL import Image

from runtime.compare import snr_db
from runtime.errors import InputError
from runtime.pipelines.base_and_refiner import base_and_refiner
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.inpaint import inpaint
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.size_conditioning import SizeConditioning
from runtime.pipelines.text_to_image import text_to_image

PROMPTS = ("a large red circle at the left on a white background", "a blue cross above a green square on a black background")
SEEDS = (3, 8)
# the same modules on both sides: only guidance, scheduler and noise round on their own, by 2^-24 (145 dB) in some tens of places a step
LATENTS_DB = 100.0
HEARD_DB = 60.0  # an option that is not heard would leave the latents equal
NEAR = 1  # of 255: rounding may go either way
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="module")
def base_parts(base_folder: Path) -> dict[str, Any]:
    return torch_packages.sdxl(base_folder)


@pytest.fixture(scope="module")
def refiner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refiner")


@pytest.fixture(scope="module")
def refiner_parts(refiner_folder: Path) -> dict[str, Any]:
    return torch_packages.refiner(refiner_folder)


@pytest.fixture
def base(base_folder: Path, base_parts: dict[str, Any]) -> torch_packages.TorchSessions:
    return torch_packages.sessions(base_folder, base_parts)


@pytest.fixture
def refiner(refiner_folder: Path, refiner_parts: dict[str, Any]) -> torch_packages.TorchSessions:
    return torch_packages.sessions(refiner_folder, refiner_parts)


@pytest.fixture
def photo() -> np.ndarray:
    """A smooth picture: uint8 [64, 64, 3]."""
    across = np.linspace(0, 255, 64)
    return np.stack(np.broadcast_arrays(across[:, None], across[None, :], 128.0), axis=-1).astype(np.uint8)


def pipeline(kind: Any, parts: dict[str, Any], scheduler: str = "euler", **options: Any) -> Any:
    """diffusers' pipeline, which remembers the latents of every step in `trajectory`."""
    made = kind(**{**parts, "scheduler": sampler(parts, scheduler)}, add_watermarker=False, **options)
    made.set_progress_bar_config(disable=True)
    made.trajectory = []
    return made


def refining(kind: Any, parts: dict[str, Any], scheduler: str = "euler") -> Any:
    return pipeline(kind, parts, scheduler, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False)


def sampler(parts: dict[str, Any], name: str) -> Any:
    return getattr(diffusers, SCHEDULERS[name]).from_config(parts["scheduler"].config)


def latents_of(pipeline: Any, prompts: tuple[str, ...] = PROMPTS[:1], **call: Any) -> np.ndarray:
    """The final latents, float32 [B, 4, 8, 8]."""

    def record(_pipeline: object, _index: int, _timestep: int, kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pipeline.trajectory.append(kept["latents"].numpy().copy())
        return kept

    call = {"generator": generators(len(prompts)), "output_type": "latent", "callback_on_step_end": record, **call}
    return pipeline(list(prompts), **call).images.numpy()


def generators(count: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS[:count]]


def check(result: Result, latents: np.ndarray, parts: dict[str, Any]) -> None:
    """Latents and picture are diffusers'."""
    assert snr_db(latents, result.latents) > LATENTS_DB
    with torch.no_grad():
        decoded = parts["vae"].decode(torch.from_numpy(latents) / parts["vae"].config.scaling_factor).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(result.images - expected).max() <= NEAR


ONE = Settings.one_prompt(PROMPTS[0], SEEDS[0], steps=4, guidance=5.0)
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # for diffusers, for us
    "zeros for no negative prompt": ({}, {}),
    "an empty negative prompt": ({"negative_prompt": ""}, {"negative": ""}),
    "a negative prompt": ({"negative_prompt": "yellow!"}, {"negative": "yellow!"}),
    "no guidance": ({"guidance_scale": 1.0}, {"guidance": 1.0}),
    "rescaled guidance": ({"guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
    "original size and crop": (
        {"original_size": (512, 768), "crops_coords_top_left": (16, 256)}, {"sizes": SizeConditioning((512, 768), (16, 256))}
    ),
    "target size": ({"target_size": (1024, 512)}, {"sizes": SizeConditioning(target=(1024, 512))}),
    "negative sizes": (
        {"negative_original_size": (256, 256), "negative_crops_coords_top_left": (8, 4), "negative_target_size": (512, 1024)},
        {"sizes": SizeConditioning(negative_original=(256, 256), negative_crop=(8, 4), negative_target=(512, 1024))},
    ),
    "negative sizes beside a crop": (
        {"crops_coords_top_left": (64, 0), "negative_original_size": (256, 256), "negative_target_size": (512, 1024)},
        {"sizes": SizeConditioning(crop=(64, 0), negative_original=(256, 256), negative_target=(512, 1024))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_text_to_image_with_every_option(option: str, base: torch_packages.TorchSessions, base_parts: dict[str, Any]) -> None:
    call, settings = OPTIONS[option]
    theirs = pipeline(StableDiffusionXLPipeline, base_parts)
    expected = latents_of(theirs, **{"num_inference_steps": 4, "guidance_scale": 5.0, "height": 64, "width": 64, **call})
    trajectory: list[np.ndarray] = []
    result = text_to_image(base, replace(ONE, **settings), lambda *step: trajectory.append(step[2]))
    for wanted, latents in zip(theirs.trajectory, trajectory, strict=True):
        assert snr_db(wanted, latents) > LATENTS_DB
    check(result, expected, base_parts)
    assert base.rows == [1 if option == "no guidance" else 2] * 4
    assert list(result.timings) == ["text_encoder", "text_encoder_2", "unet", "vae_decoder"]
    if settings:
        assert snr_db(text_to_image(base, ONE).latents, result.latents) < HEARD_DB


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_batch_with_every_scheduler(name: str, base: torch_packages.TorchSessions, base_parts: dict[str, Any]) -> None:
    theirs = pipeline(StableDiffusionXLPipeline, base_parts, name)
    expected = latents_of(theirs, PROMPTS, num_inference_steps=5, guidance_scale=4.0, height=64, width=128, negative_prompt=["blue"] * 2)
    settings = Settings(PROMPTS, SEEDS, negative="blue", steps=5, guidance=4.0, height=64, width=128, scheduler=name)
    check(text_to_image(base, settings), expected, base_parts)


def test_what_no_encoder_knows_is_told_once(base: torch_packages.TorchSessions) -> None:
    result = text_to_image(base, replace(ONE, prompts=("red " * 80,), negative="blue", guidance=0.0))
    assert len(result.warnings) == 2
    assert "the model reads 77" in result.warnings[0]
    assert result.warnings[1] == "the negative prompt is not used: without guidance there is nothing to lead away from"


@pytest.mark.parametrize(("name", "strength"), [("euler", 0.5), ("euler_ancestral", 0.9), ("dpmpp_2m", 1.0)])
def test_image_to_image(
    name: str, strength: float, photo: np.ndarray, base: torch_packages.TorchSessions, base_parts: dict[str, Any]
) -> None:
    theirs = pipeline(StableDiffusionXLImg2ImgPipeline, base_parts, name)
    sizes = {"original_size": (96, 80), "target_size": (48, 64), "negative_original_size": (32, 32)}
    call = {"image": Image.fromarray(photo), "strength": strength, "num_inference_steps": 6, "guidance_scale": 4.0}
    ours = SizeConditioning((96, 80), target=(48, 64), negative_original=(32, 32))
    settings = replace(ONE, steps=6, guidance=4.0, scheduler=name, image=photo, strength=strength, sizes=ours)
    check(image_to_image(base, settings), latents_of(theirs, **call, **sizes), base_parts)


SCORES: dict[str, tuple[dict[str, Any], SizeConditioning]] = {
    "the defaults": ({}, SizeConditioning()),
    "scores": ({"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0}, SizeConditioning(aesthetic_score=9, negative_aesthetic_score=1)),
    "a crop": ({"crops_coords_top_left": (40, 8)}, SizeConditioning(crop=(40, 8))),
    "negatives": (
        {"negative_original_size": (32, 48), "negative_crops_coords_top_left": (4, 2)},
        SizeConditioning(negative_original=(32, 48), negative_crop=(4, 2)),
    ),
}


@pytest.mark.parametrize("case", SCORES)
@pytest.mark.parametrize("negative", [None, "green"])
def test_the_refiner_as_image_to_image(
    case: str, negative: str | None, photo: np.ndarray, refiner: torch_packages.TorchSessions, refiner_parts: dict[str, Any]
) -> None:
    call, sizes = SCORES[case]
    theirs = refining(StableDiffusionXLImg2ImgPipeline, refiner_parts)
    expected = latents_of(
        theirs, image=Image.fromarray(photo), strength=0.3, num_inference_steps=10, guidance_scale=5.0, negative_prompt=negative, **call
    )
    settings = replace(ONE, steps=10, image=photo, negative=negative, sizes=sizes)  # the strength is the package's
    result = image_to_image(refiner, settings)
    check(result, expected, refiner_parts)
    assert refiner.rows == [2] * 3
    if call:
        assert snr_db(image_to_image(refiner, replace(settings, sizes=SizeConditioning())).latents, result.latents) < HEARD_DB


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inpainting(strength: float, photo: np.ndarray, base: torch_packages.TorchSessions, base_parts: dict[str, Any]) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:56] = 255
    theirs = pipeline(StableDiffusionXLInpaintPipeline, base_parts)
    # diffusers gives them back before the last blend with the picture's own only where it decodes; so it is asked for the picture
    pictures = theirs(
        PROMPTS[0], image=Image.fromarray(photo), mask_image=Image.fromarray(mask), height=64, width=64, strength=strength,
        num_inference_steps=5, guidance_scale=5.0, generator=generators(), output_type="np",
    ).images  # fmt: skip
    result = inpaint(base, replace(ONE, steps=5, image=photo, mask=mask, strength=strength))
    assert np.abs(result.images - (pictures * 255).round()).max() <= NEAR


def handed_over(
    base_parts: dict[str, Any], refiner_parts: dict[str, Any], name: str, handover: float, image: np.ndarray | None = None, **call: Any
) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """diffusers' final latents, those after every step, and the timesteps of all steps."""
    kind = StableDiffusionXLPipeline if image is None else StableDiffusionXLImg2ImgPipeline
    start = {"height": 64, "width": 64} if image is None else {"image": Image.fromarray(image), "strength": 0.7}
    first = pipeline(kind, base_parts, name)
    second = refining(StableDiffusionXLImg2ImgPipeline, refiner_parts, name)
    noises = generators()
    call = {"num_inference_steps": 10, "guidance_scale": 5.0, "generator": noises, **call}
    between = latents_of(first, **call, **start, denoising_end=handover)
    latents = latents_of(second, **call, image=torch.from_numpy(between), denoising_start=handover)
    cut = round(1000 - 1000 * handover)
    begun = len(first.scheduler.timesteps) - 7 if image is not None else 0
    timesteps = [float(t) for t in first.scheduler.timesteps[begun:] if t >= cut] + [
        float(t) for t in second.scheduler.timesteps if t < cut
    ]
    return latents, first.trajectory + second.trajectory, timesteps


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("handover", [0.8, 0.55])
def test_handover_is_diffusers_denoising_end_and_start(
    name: str, handover: float, base: torch_packages.TorchSessions, refiner: torch_packages.TorchSessions, base_parts: dict[str, Any],
    refiner_parts: dict[str, Any],
) -> None:  # fmt: skip
    expected, trajectory, timesteps = handed_over(base_parts, refiner_parts, name, handover, negative_prompt="grey")
    steps: list[tuple[Any, ...]] = []
    settings = replace(ONE, steps=10, scheduler=name, negative="grey")
    result = base_and_refiner(base, refiner, settings, handover, on_step=lambda *step: steps.append(step))
    assert [step[0] for step in steps] == list(range(len(timesteps)))
    assert [float(step[1]) for step in steps] == pytest.approx(timesteps)
    for wanted, step in zip(trajectory, steps, strict=True):
        assert snr_db(wanted, step[2]) > LATENTS_DB
    check(result, expected, refiner_parts)
    assert len(base.rows) + len(refiner.rows) == len(result.timings["unet"]) == len(timesteps)
    assert refiner.rows


def test_handover_of_a_changed_picture(
    photo: np.ndarray, base: torch_packages.TorchSessions, refiner: torch_packages.TorchSessions, base_parts: dict[str, Any],
    refiner_parts: dict[str, Any],
) -> None:  # fmt: skip
    expected, _, timesteps = handed_over(base_parts, refiner_parts, "euler", 0.8, photo)
    result = base_and_refiner(base, refiner, replace(ONE, steps=10, image=photo, strength=0.7), 0.8)
    check(result, expected, refiner_parts)
    assert len(timesteps) == len(base.rows) + len(refiner.rows) == 7


def test_each_expert_gets_its_own_sizes(
    base: torch_packages.TorchSessions, refiner: torch_packages.TorchSessions, base_parts: dict[str, Any], refiner_parts: dict[str, Any]
) -> None:
    theirs, refines = pipeline(StableDiffusionXLPipeline, base_parts), refining(StableDiffusionXLImg2ImgPipeline, refiner_parts)
    noises = generators()
    call = {"num_inference_steps": 10, "guidance_scale": 5.0, "generator": noises, "original_size": (96, 48)}
    between = latents_of(theirs, **call, target_size=(48, 96), height=64, width=64, denoising_end=0.8)
    expected = latents_of(refines, **call, aesthetic_score=8.0, image=torch.from_numpy(between), denoising_start=0.8)
    sizes = SizeConditioning((96, 48), target=(48, 96), aesthetic_score=8.0)
    result = base_and_refiner(base, refiner, replace(ONE, steps=10, sizes=sizes))
    check(result, expected, refiner_parts)
    assert result.settings.sizes.given().keys() == {
        f"{sign}{name}" for sign in ("", "negative_") for name in ("original", "crop", "target")
    }
    assert result.refiner_settings is not None
    assert result.refiner_settings.sizes.aesthetic_score == 8.0
    assert result.refiner_settings.sizes.negative_aesthetic_score == 2.5


def test_low_memory_frees_the_base_before_the_refiner(
    base_folder: Path, base_parts: dict[str, Any], refiner_folder: Path, refiner_parts: dict[str, Any]
) -> None:
    made = [torch_packages.sessions(folder, parts, low_memory=True) for folder, parts in
            ((base_folder, base_parts), (refiner_folder, refiner_parts))]  # fmt: skip
    held: list[tuple[tuple[str, ...], ...]] = []
    base_and_refiner(*made, replace(ONE, steps=5), 0.8, lambda *_: held.append(tuple(each.loaded for each in made)))
    assert held == [(("unet",), ())] * 4 + [((), ("unet",))]


def test_what_does_not_go_together_is_refused(
    photo: np.ndarray,
    base: torch_packages.TorchSessions,
    refiner: torch_packages.TorchSessions,
    base_folder: Path,
    base_parts: dict[str, Any],
) -> None:
    with pytest.raises(
        InputError, match=r"is a refiner, which begins no picture: give it to a base package \(--refiner\), or give it a pic"
    ):
        text_to_image(refiner, ONE)
    with pytest.raises(InputError, match="is no refiner: its U-Net takes 6 time ids where a refiner takes 5"):
        base_and_refiner(base, base, ONE)
    with pytest.raises(InputError, match="is a refiner itself, which begins no picture: name a base package before its refiner"):
        base_and_refiner(refiner, refiner, ONE)
    with pytest.raises(InputError, match="a refiner takes no mask: inpaint with the base alone"):
        base_and_refiner(base, refiner, replace(ONE, image=photo, mask=photo[:, :, 0]))
    for share in (0.0, 1.0, 2.0):
        with pytest.raises(InputError, match=r"is not possible: give a share of the noise between 0 and 1, such as 0.8"):
            base_and_refiner(base, refiner, ONE, share)
    with pytest.raises(InputError, match=r"a hand-over at 0.9999 leaves the refiner no step of 4: hand over earlier, or make more"):
        base_and_refiner(base, refiner, ONE, 0.9999)
    with pytest.raises(InputError, match=r"a hand-over at 0.2 leaves the base no step of 10: hand over later, or make more"):
        base_and_refiner(base, refiner, replace(ONE, steps=10, image=photo, strength=0.5), 0.2)
    other = torch_packages.sessions(base_folder, base_parts, scaling_factor=0.18215)
    with pytest.raises(
        InputError, match=r"the refiner can't go on where the base stops, their latents differ: scaling factor 0.18215 against"
    ):
        base_and_refiner(other, refiner, ONE)
    ancestral = torch_packages.sessions(base_folder, {**base_parts, "scheduler": sampler(base_parts, "ddim")})
    with pytest.raises(InputError, match="the base samples with ddim and the refiner with euler, whose latents are not alike: choose one"):
        base_and_refiner(ancestral, refiner, ONE)
    assert base.rows == refiner.rows == []  # nothing was begun


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        (SizeConditioning(aesthetic_score=6.0), "an aesthetic score means nothing to SDXL's base: the refiner takes it"),
        (SizeConditioning(original=(0, 8)), "the original size 0, 8 is not possible: it counts pixels"),
        (SizeConditioning(negative_crop=(-1, 0)), "the negative crop -1, 0 is not possible: it counts pixels"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(sizes: SizeConditioning, sentence: str, base: torch_packages.TorchSessions) -> None:
    with pytest.raises(InputError, match=sentence):
        text_to_image(base, replace(ONE, sizes=sizes))


def test_sizes_that_mean_nothing_to_a_refiner_are_refused(photo: np.ndarray, refiner: torch_packages.TorchSessions) -> None:
    with pytest.raises(InputError, match="a target size means nothing to the refiner: SDXL's base takes it"):
        image_to_image(refiner, replace(ONE, image=photo, sizes=SizeConditioning(target=(64, 64))))
    with pytest.raises(InputError, match="an aesthetic score of nan is not possible: give a number, LAION's go from 1 to 10"):
        image_to_image(refiner, replace(ONE, image=photo, sizes=SizeConditioning(aesthetic_score=float("nan"))))


@pytest.mark.parametrize(("said", "others"), [(5, {"aesthetic_score": 6.0, "negative_aesthetic_score": 2.5}), (0, {}), (7, {})])
def test_a_package_that_says_other_time_ids_than_its_unet_takes_is_refused(
    said: int, others: dict[str, float], photo: np.ndarray, base_folder: Path, base_parts: dict[str, Any]
) -> None:
    damaged = torch_packages.sessions(base_folder, base_parts, time_ids=said, **others)
    with pytest.raises(
        InputError, match=rf"takes 6 time ids and its manifest says {said}, where SDXL's base has 6 and its refiner 5: the pack"
    ):
        image_to_image(damaged, replace(ONE, image=photo))
