"""The model that the project ships: small, of Stable Diffusion's structure, and as good as its README says, in torch and as a package."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from runtime.manifest import Package
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image
from runtime.scenes import draw, is_held_out, judge, scenes, score_scenes
from runtime.score import score


@pytest.fixture(scope="module")
def torch_score(tiny_checkpoint: Path) -> float:
    """The score in torch, by diffusers' own pipeline and DDIM, which share no code with the runtime."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, torch_dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    wanted = score_scenes()
    right = 0
    for start in range(0, len(wanted), 16):
        some = wanted[start : start + 16]
        generators = [torch.Generator().manual_seed(start + index) for index in range(len(some))]
        pictures = pipeline([scene.caption for scene in some], num_inference_steps=20, guidance_scale=4.0, generator=generators,
                            output_type="np").images
        right += sum(judge((picture * 255).round().astype(np.uint8), scene).right for picture, scene in zip(pictures, some, strict=True))
    return right / len(wanted)


def test_at_least_nine_prompts_in_ten_are_right_in_torch(torch_score: float) -> None:
    assert torch_score >= 0.90


def test_the_readme_states_the_score(torch_score: float, tiny_checkpoint: Path) -> None:
    stated = re.search(r"\*\*(0\.\d+|1\.0+)\*\* of the 64 score prompts", (tiny_checkpoint / "README.md").read_text())
    assert stated is not None
    assert float(stated[1]) == pytest.approx(torch_score, abs=0.5 / 64)


def test_the_package_loses_at_most_two_hundredths(torch_score: float, tiny_package: Path) -> None:
    assert score(Package.open(tiny_package)) >= torch_score - 0.02


def test_the_demo_shows_what_its_prompt_says(tiny_package: Path) -> None:
    """With the package's own defaults, as `make demo` makes it."""
    caption = "a red circle above a blue square on a yellow background"
    scene = next(scene for scene in scenes() if scene.caption == caption)
    for seed in range(4):
        verdict = judge(text_to_image(Package.open(tiny_package), Settings.one_prompt(caption, seed)).images[0], scene)
        assert verdict.right, (seed, verdict.reason)


def test_it_is_small_and_has_the_layout_of_published_models(tiny_checkpoint: Path) -> None:
    files = {path.relative_to(tiny_checkpoint).as_posix(): path.stat().st_size for path in tiny_checkpoint.rglob("*") if path.is_file()}
    assert sum(files.values()) <= 12_000_000
    assert {
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt",
        "tokenizer/vocab.json", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    } <= files.keys()


def test_no_score_prompt_was_trained_on() -> None:
    wanted = score_scenes()
    assert len({scene.caption for scene in wanted}) == 64
    assert all(is_held_out(scene) for scene in wanted)
    assert sum(is_held_out(scene) for scene in scenes()) == pytest.approx(888, rel=0.1)


def test_the_judge_finds_every_drawn_scene_and_no_other() -> None:
    wanted = score_scenes()
    rng = np.random.default_rng(0)
    pictures = [(draw(scene, 64, rng) * 255).round().astype(np.uint8) for scene in wanted]
    for index, scene in enumerate(wanted):
        assert judge(pictures[index], scene).right, scene.caption
        for other in (wanted[index - 1], wanted[index - 2], wanted[index - 3]):
            assert not judge(pictures[index], other).right, (scene.caption, other.caption)


ONE = "a large red circle at the top on a blue background"
TWO = "a red circle above a green cross on a blue background"


@pytest.mark.parametrize(("caption", "painted", "reason"), [
    (ONE, "a large red circle at the top on a white background", "the background is blue in 0%"),
    (ONE, "a large red square at the top on a blue background", "looks like a square"),
    (ONE, "a large red circle in the centre on a blue background", "stands 0.22 widths away"),
    (ONE, "a small red circle at the top on a blue background", "times the area"),
    (TWO, "a green circle above a red cross on a blue background", "stands 0.45 widths away"),
    (TWO, "a green cross above a red circle on a blue background", "stands 0.45 widths away"),
    (TWO, "a red cross above a green circle on a blue background", "looks like a cross"),
])
def test_the_judge_says_what_is_wrong(caption: str, painted: str, reason: str) -> None:
    known = {scene.caption: scene for scene in scenes()}
    verdict = judge((draw(known[painted], 64) * 255).round().astype(np.uint8), known[caption])
    assert not verdict.right
    assert reason in verdict.reason
