"""The score of the embedded model: the same pictures as torch, and judged as the judge is made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from runtime import score
from runtime.errors import InputError
from runtime.manifest import Package
from runtime.pipelines.settings import Settings
from runtime.providers import provider
from runtime.scenes import draw, judge, score_scenes
from runtime.session import Sessions


def test_the_pictures_are_those_of_torch(
    tiny_package: Path, torch_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = score_scenes()[15:18]  # of both kinds
    monkeypatch.setattr(score, "score_scenes", lambda: some)
    results = score.judged(Package.open(tiny_package), provider("cpu"))
    torch_pipeline.scheduler = DDIMScheduler.from_config(torch_pipeline.scheduler.config, clip_sample=False)
    expected = torch_pipeline(
        [scene.caption for scene in some], num_inference_steps=20, guidance_scale=4.0, height=64, width=64, output_type="np",
        generator=[torch.Generator().manual_seed(index) for index in range(3)],
    ).images  # fmt: skip
    for result, scene, picture in zip(results, some, expected, strict=True):
        assert result.scene == scene
        assert result.verdict == judge(result.picture, scene)
        assert np.abs(result.picture.astype(int) - (picture * 255).round().astype(int)).max() <= 2


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[score.Judged]:
    """Results as if every scene but two were painted as it should be."""
    results = []
    for index, scene in enumerate(score_scenes()):
        picture = (draw(scene, 64) * 255).round().astype(np.uint8)
        if index in (4, 40):
            picture = picture[::-1, ::-1].copy()
            picture[:] = 255 - picture
        results.append(score.Judged(scene, picture, judge(picture, scene)))
    monkeypatch.setattr(score, "judged", lambda *_: results)
    return results


@pytest.mark.parametrize(("rows", "pictures"), [("batch", [16, 4]), (1, [1] * 20), (2, [1] * 20), (8, [4] * 5)])
def test_a_static_graph_draws_what_one_run_takes(
    rows: int | str, pictures: list[int], tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package.open(tiny_package)
    unet = package.manifest.components["unet"]
    ports = tuple(replace(port, shape=(rows, *port.shape[1:]) if port.name == "sample" else port.shape) for port in unet.inputs)
    static = replace(package.manifest, components={**package.manifest.components, "unet": replace(unet, inputs=ports)})
    some = score_scenes()[:20]
    asked: list[Settings] = []

    def drawn(_: Sessions, settings: Settings) -> SimpleNamespace:
        asked.append(settings)
        return SimpleNamespace(images=[np.zeros((64, 64, 3), np.uint8)] * len(settings.prompts))

    monkeypatch.setattr(score, "score_scenes", lambda: some)
    monkeypatch.setattr(score, "text_to_image", drawn)
    results = score.judged(Package(package.path, static), provider("cpu"), steps=3)
    assert [len(settings.prompts) for settings in asked] == pictures
    assert [prompt for settings in asked for prompt in settings.prompts] == [scene.caption for scene in some]
    assert [seed for settings in asked for seed in settings.seeds] == list(range(20))
    assert {settings.steps for settings in asked} == {3}
    assert [result.scene for result in results] == some


def test_the_command_names_what_is_wrong(painted: list[score.Judged], tiny_package: Path, tmp_path: Path) -> None:
    arguments = [tiny_package, "--json", tmp_path / "score.json", "--sheet", tmp_path / "sheet.png"]
    done = CliRunner().invoke(score.main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    written: dict[str, Any] = json.loads((tmp_path / "score.json").read_text())
    assert written["score"] == 62 / 64
    assert (written["prompts"], written["steps"]) == (64, 20)
    assert [each["prompt"] for each in written["wrong"]] == [painted[4].scene.caption, painted[40].scene.caption]
    assert all(f"{each['prompt']}: {each['reason']}" in done.stdout for each in written["wrong"])
    assert "62 of 64 prompts are right: score 0.969 in 20 steps" in done.stdout
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (8 * 128, 8 * 128, 3)
    assert sheet[0, 4 * 128].tolist() == [255, 0, 255]
    np.testing.assert_array_equal(sheet[:128:2, :128:2], painted[0].picture)


def test_another_model_has_no_score(changed: Any) -> None:
    package = Package.open(changed(lambda manifest: manifest.update(model="sd14")))
    with pytest.raises(InputError, match="the score is for packages of the embedded model, 'tiny': it means nothing for 'sd14'"):
        score.score(package)
