"""The commands on packages of SDXL-Turbo and LCM, as a user calls them. What they compute is held against diffusers elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from runtime import bench, generate, measure, verify
from runtime.manifest import Package
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image

PROMPT = "a large red circle at the left on a white background"
PHOTO = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture(params=["turbo_package", "lcm_package"])
def path(request: pytest.FixtureRequest) -> Path:
    made: Path = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "in" / "photo.png"
    file.parent.mkdir()
    Image.fromarray(PHOTO).save(file)
    return file


def run(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command.main, [str(argument) for argument in arguments])


def drawn(package: Path, out: Path, *arguments: object) -> tuple[np.ndarray, dict[str, str], Result]:
    """The picture of the command, what its file says, and what the command said."""
    done = run(generate, package, PROMPT, "--out", out, *arguments)
    assert done.exit_code == 0, done.output
    with Image.open(out) as image:
        return np.asarray(image), dict(image.text), done


def test_the_presets(turbo_package: Path, lcm_package: Path, tmp_path: Path) -> None:
    """With nothing said: one step without guidance of SDXL-Turbo, four with guidance as an input of LCM."""
    for package, steps, guidance, scheduler in ((turbo_package, 1, "0", "euler_ancestral"), (lcm_package, 4, "8.5", "lcm")):
        picture, text, done = drawn(package, tmp_path / f"{scheduler}.png")
        np.testing.assert_array_equal(picture, text_to_image(Package.open(package), Settings.one_prompt(PROMPT)).images[0])
        assert (text["steps"], text["guidance"], text["scheduler"]) == (str(steps), guidance, scheduler)
        assert f"{steps} step{'s' * (steps > 1)} of " in done.stdout


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_few_steps(steps: int, path: Path, tmp_path: Path) -> None:
    picture, text, done = drawn(path, tmp_path / "p.png", "--steps", steps, "--seed", 3)
    result = text_to_image(Package.open(path), Settings.one_prompt(PROMPT, 3, steps=steps))
    np.testing.assert_array_equal(picture, result.images[0])
    assert text["steps"] == str(steps)
    assert len(result.timings["unet"]) == steps
    assert f"{steps}/{steps}" in done.stderr


@pytest.mark.parametrize(("asked", "steps", "strength", "made"), [
    ((), "2", "0.5", 1),  # at its strength of 0.5 the preset's one step would be none
    (("--steps", 1), "1", "1", 1),
    (("--steps", 4, "--strength", 0.5), "4", "0.5", 2),
])
def test_turbo_changes_a_picture_in_one_step(asked: Sequence[object], steps: str, strength: str, made: int, turbo_package: Path,
                                             photo: Path, tmp_path: Path) -> None:
    picture, text, done = drawn(turbo_package, tmp_path / "p.png", "--image", photo, *asked)
    assert (text["steps"], text["strength"]) == (steps, strength)
    assert f"{made} step{'s' * (made > 1)} of " in done.stdout
    settings = Settings.one_prompt(PROMPT, image=PHOTO, steps=int(steps), strength=float(strength))
    np.testing.assert_array_equal(picture, image_to_image(Package.open(turbo_package), settings).images[0])


def test_lcm_changes_a_picture_in_all_its_steps(lcm_package: Path, photo: Path, tmp_path: Path) -> None:
    for asked, made in (((), 4), (("--steps", 1), 1), (("--steps", 8, "--strength", 0.3), 8)):
        _, text, done = drawn(lcm_package, tmp_path / "p.png", "--image", photo, *asked)
        assert text["steps"] == str(made)
        assert f"{made} step{'s' * (made > 1)} of " in done.stdout


def test_what_few_steps_do_not_take(turbo_package: Path, lcm_package: Path, photo: Path, tmp_path: Path) -> None:
    for package, arguments, sentence in (
        (turbo_package, ["--image", photo, "--steps", 3, "--strength", 0.3], "error: a strength of 0.3 leaves no step of 3: take 4 steps"),
        (lcm_package, ["--steps", 60], "error: 60 steps are not possible: this model was distilled to at most 50; 4 to 8 are usual"),
        (lcm_package, ["--image", photo, "--steps", 8, "--strength", 0.1], "error: a strength of 0.1 leaves 5 of the 50 steps"),
    ):
        done = run(generate, package, PROMPT, "--out", tmp_path / "p.png", *arguments)
        assert done.exit_code == 2, done.output
        assert sentence in done.stderr
    assert not (tmp_path / "p.png").exists()
    _, _, done = drawn(turbo_package, tmp_path / "p.png", "--negative", "blue")
    assert "warning: the negative prompt is not used: without guidance there is nothing to lead away from" in done.stderr


def test_verify(path: Path) -> None:
    done = run(verify, path)
    assert done.exit_code == 0, done.output
    assert "ok  a picture of 64 x 64 in 2 steps: finite, and not flat" in done.output


def test_bench_times_the_prompt_a_step_and_decoding_apart(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without guidance, or with it as an input, a picture is one text, a row of the U-Net per step, and one decoding."""
    monkeypatch.setattr(bench, "start", lambda job, _: measure.measure(job))  # in this process
    done = run(bench, path, "--repeat", 1, "--warmup", 0, "--steps", 1, "--json", tmp_path / "bench.json")
    assert done.exit_code == 0, done.output
    rows = {row["component"]: row for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    components = Package.open(path).manifest.components
    assert list(rows) == [*components, "prompt", "step", "pipeline"]
    texts = sum(rows[name]["flops"] for name in components if name.startswith("text_encoder"))
    assert rows["prompt"]["flops"] == texts > 0
    assert rows["step"]["flops"] == rows["unet"]["flops"] > 0
    assert rows["pipeline"]["flops"] == texts + rows["unet"]["flops"] + rows["vae_decoder"]["flops"]
    assert all(rows["pipeline"][part] > 0 for part in ("prompt_ms", "step_ms", "decoding_ms"))
    assert "A picture in 1 step on cpu: the prompt" in done.output
