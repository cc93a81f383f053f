"""The score of the embedded model: the same pictures as torch, and judged as the judge is made."""

from __future__ import annotations

import json
from pathlib import Path
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
from runtime.providers import provider
from runtime.scenes import draw, judge, score_scenes


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


def test_the_command_names_what_is_wrong(painted: list[score.Judged], tiny_package: Path, tmp_path: Path) -> None:
    arguments = [tiny_package, "--json", tmp_path / "score.json", "--sheet", tmp_path / "sheet.png"]
    done = CliRunner().invoke(score.main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    written: dict[str, Any] = json.loads((tmp_path / "score.json").read_text())
    assert written["score"] == 62 / 64
    assert written["prompts"] == 64
    assert [each["prompt"] for each in written["wrong"]] == [painted[4].scene.caption, painted[40].scene.caption]
    assert all(f"{each['prompt']}: {each['reason']}" in done.stdout for each in written["wrong"])
    assert "62 of 64 prompts are right: score 0.969" in done.stdout
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (8 * 128, 8 * 128, 3)
    assert sheet[0, 4 * 128].tolist() == [255, 0, 255]
    np.testing.assert_array_equal(sheet[:128:2, :128:2], painted[0].picture)


def test_another_model_has_no_score(changed: Any) -> None:
    package = Package.open(changed(lambda manifest: manifest.update(model="sd14")))
    with pytest.raises(InputError, match="the score is for packages of the embedded model, 'tiny': it means nothing for 'sd14'"):
        score.score(package)
