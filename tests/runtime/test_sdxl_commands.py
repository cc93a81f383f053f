"""The commands on packages of SDXL's base and refiner, as a user calls them. What they compute is held against diffusers elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime import bench, generate, verify
from runtime.inputs import example_inputs
from runtime.manifest import NAME, Package, sha256_of
from runtime.pipelines.base_and_refiner import base_and_refiner
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.settings import Settings
from runtime.pipelines.size_conditioning import SizeConditioning
from runtime.pipelines.text_to_image import text_to_image
from runtime.report import __main__ as report

PROMPT = "a large red circle at the left on a white background"


def run(command: Any, *arguments: object) -> Any:
    return CliRunner().invoke(command.main, [str(argument) for argument in arguments])


def read(file: Path) -> tuple[np.ndarray, dict[str, str]]:
    with Image.open(file) as image:
        return np.asarray(image), image.text


def test_sizes_and_rescale_reach_the_picture_and_its_file(sdxl_package: Path, tmp_path: Path) -> None:
    asked = ["--original-size", "512x768", "--crop", "0,128", "--target-size", "32x48", "--negative-original-size", "256x128",
             "--negative-crop", "2,4", "--negative-target-size", "16x8", "--guidance-rescale", 0.5]  # fmt: skip
    done = run(generate, sdxl_package, PROMPT, "--steps", 2, "--seed", 4, *asked, "--out", tmp_path / "p.png")
    assert done.exit_code == 0, done.output
    picture, text = read(tmp_path / "p.png")
    sizes = SizeConditioning((512, 768), (0, 128), (32, 48), None, (256, 128), (2, 4), (16, 8))
    settings = Settings.one_prompt(PROMPT, 4, steps=2, guidance_rescale=0.5, sizes=sizes)
    np.testing.assert_array_equal(picture, text_to_image(Package.open(sdxl_package), settings).images[0])
    written = dict(zip([str(option).removeprefix("--").replace("-", "_") for option in asked[::2]], map(str, asked[1::2]), strict=True))
    assert {key: text[key] for key in written} == written
    assert "CFG Rescale: 0.5" in text["parameters"]


def test_what_a_picture_took_is_told_apart(sdxl_package: Path, tmp_path: Path) -> None:
    done = run(generate, sdxl_package, PROMPT, "--steps", 1, "--guidance", 0, "--out", tmp_path / "p.png")
    assert done.exit_code == 0, done.output
    figure = r"\d+\.\d{3} s"
    line = rf"\d+\.\d s to run \(prompt {figure}, 1 step of {figure}, decoding {figure}\), \d+\.\d s to load"
    assert re.fullmatch(line, done.stdout.splitlines()[-1])


def test_base_and_refiner_in_one_command(sdxl_package: Path, refiner_package: Path, tmp_path: Path) -> None:
    asked = ["--steps", 5, "--handover", 0.6, "--target-size", "96x80", "--aesthetic-score", 7.5]
    done = run(generate, sdxl_package, PROMPT, "--refiner", refiner_package, *asked, "--low-memory", "--out", tmp_path / "p.png")
    assert done.exit_code == 0, done.output
    assert "5 steps of" in done.stdout
    picture, text = read(tmp_path / "p.png")
    settings = Settings.one_prompt(PROMPT, steps=5, sizes=SizeConditioning(target=(96, 80), aesthetic_score=7.5))
    packages = [Package.open(path) for path in (sdxl_package, refiner_package)]
    # with little memory weights are not packed, and sums run in another order: a level that lies between two may fall to either
    np.testing.assert_allclose(picture.astype(int), base_and_refiner(*packages, settings, 0.6).images[0], rtol=0, atol=1)
    digest = sha256_of(refiner_package / NAME)
    expected = {"model": "tiny-sdxl", "refiner": "tiny-sdxl-refiner", "refiner_sha256": digest, "handover": "0.6", "target_size": "96x80",
                "refiner_aesthetic_score": "7.5", "refiner_negative_aesthetic_score": "2.5", "refiner_guidance": "5"}  # fmt: skip
    assert {key: text[key] for key in expected} == expected
    assert f"Refiner: tiny-sdxl-refiner [{digest[:10]}], Refiner switch at: 0.6" in text["parameters"]


def test_the_refiner_changes_a_picture(refiner_package: Path, tmp_path: Path) -> None:
    photo = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    asked = ["--image", tmp_path / "photo.png", "--steps", 6, "--negative-aesthetic-score", 1]
    done = run(generate, refiner_package, PROMPT, *asked, "--out", tmp_path / "p.png")
    assert done.exit_code == 0, done.output
    picture, text = read(tmp_path / "p.png")
    settings = Settings.one_prompt(PROMPT, steps=6, image=photo, sizes=SizeConditioning(negative_aesthetic_score=1.0))
    np.testing.assert_array_equal(picture, image_to_image(Package.open(refiner_package), settings).images[0])
    assert {key: text[key] for key in ("strength", "aesthetic_score", "negative_aesthetic_score")} == {
        "strength": "0.3", "aesthetic_score": "6", "negative_aesthetic_score": "1",
    }  # fmt: skip
    assert "target_size" not in text


def test_bad_input_is_one_sentence_and_exit_2(sdxl_package: Path, refiner_package: Path, tiny_package: Path, tmp_path: Path) -> None:
    for package, arguments, sentence in (
        (refiner_package, [], "is a refiner, which begins no picture: give it to a base package (--refiner)"),
        (sdxl_package, ["--refiner", sdxl_package], "is no refiner: its U-Net takes 6 time ids where a refiner takes 5"),
        (sdxl_package, ["--refiner", tiny_package], "is no refiner: its U-Net takes no time ids where a refiner takes 5"),
        (sdxl_package, ["--refiner", tmp_path / "none"], "error: there is no package at"),
        (
            tiny_package,
            ["--refiner", refiner_package],
            "the refiner can't go on where the base stops, their latents differ: scaling factor",
        ),
        (tiny_package, ["--crop", "0,0"], "error: a crop means nothing to this package: only SDXL's are told of sizes"),
        (sdxl_package, ["--height", 100], "error: a height of 100 is not possible: this package takes multiples of 8"),
        (sdxl_package, ["--handover", 0.5], "error: --handover needs --refiner: the package to hand over to"),
        (sdxl_package, ["--refiner", refiner_package, "--handover", 1.5], "error: a hand-over at 1.5 is not possible"),
        (sdxl_package, ["--guidance-rescale", 2], "error: a guidance rescale of 2.0 is impossible: give 0 (none) to 1"),
        (sdxl_package, ["--original-size", "512"], "'512' is not HxW: write it like 1024x768"),
        (sdxl_package, ["--crop", "8"], "'8' is not TOP,LEFT: write it like 0,128"),
    ):
        done = run(generate, package, PROMPT, "--out", tmp_path / "p.png", *arguments)
        assert done.exit_code == 2, done.output
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_time_ids_of_another_network_are_refused(sdxl_package: Path, tmp_path: Path) -> None:
    """As when the U-Net of a refiner was copied into a base's package, or its manifest."""
    package = Path(shutil.copytree(sdxl_package, tmp_path / "package"))
    manifest = json.loads((package / NAME).read_text())
    manifest["pipeline"] |= {"time_ids": 5, "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5}
    (package / NAME).write_text(json.dumps(manifest))
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    done = run(generate, package, PROMPT, "--image", tmp_path / "photo.png", "--out", tmp_path / "p.png")
    assert done.exit_code == 2, done.output
    assert "takes 6 time ids and its manifest says 5" in done.stderr


@pytest.mark.parametrize(("name", "ids"), [("sdxl_package", [64, 96, 0, 0, 64, 96]), ("refiner_package", [64, 96, 0, 0, 6])])
def test_verify_bench_and_report(name: str, ids: list[float], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    package = Package.open(path)
    np.testing.assert_array_equal(example_inputs(package, "unet", 64, 96, batch=2)["time_ids"], [ids, ids])

    done = run(verify, path)
    assert done.exit_code == 0, done.output
    assert "ok  a picture of 64 x 64 in 2 steps: finite, and not flat" in done.output
    assert ("tokenizer and tokenizer_2" if name == "sdxl_package" else "  ok  tokenizer_2,") in done.output

    done = run(bench, path, "--repeat", 1, "--warmup", 0, "--steps", 1, "--json", tmp_path / "bench.json")
    assert done.exit_code == 0, done.output
    rows = {row["component"]: row for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    encoders = [component for component in rows if component.startswith("text_encoder")]
    assert encoders == [component for component in package.manifest.components if component.startswith("text_encoder")]
    # zeros stand for the base's lack of a negative prompt, the refiner encodes an empty one
    texts = 1 if name == "sdxl_package" else 2
    assert rows["prompt"]["flops"] == texts * sum(rows[encoder]["flops"] for encoder in encoders)
    assert rows["step"]["flops"] == 2 * rows["unet"]["flops"]
    assert "A picture in 1 step on cpu: the prompt" in done.output

    done = run(report, path, "--bench", tmp_path / "bench.json", "--out", tmp_path / "report.html")
    assert done.exit_code == 0, done.output
    html = (tmp_path / "report.html").read_text()
    assert all(f'<th scope="row">{component}</th>' in html for component in package.manifest.components)
    assert "A picture in 1 step on cpu: the prompt" in html


def test_two_packages_of_one_refiner_agree(refiner_package: Path, tmp_path: Path) -> None:
    done = run(verify, refiner_package, "--against", shutil.copytree(refiner_package, tmp_path / "copy"))
    assert done.exit_code == 0, done.output
    assert "ok  picture: SNR equal" in done.output
