"""`python -m runtime.generate` as a user calls it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from runtime import pictures
from runtime.errors import InputError
from runtime.generate import main
from runtime.manifest import NAME, Package
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image

PROMPT = "a large red circle at the left on a white background"


def generate(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_picture_tells_how_it_was_made(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "picture.png"
    asked = ["--negative", "blau: 红色", "--seed", 5, "--steps", 2, "--guidance", 3.5, "--scheduler", "euler_ancestral"]
    done = generate(tiny_package, PROMPT, *asked, "--out", out)
    assert done.exit_code == 0, done.output
    assert str(out) in done.stdout
    assert "denoising: 100%" in done.stderr
    assert "2/2" in done.stderr
    with Image.open(out) as image:
        picture, text = np.asarray(image), image.text
    settings = Settings.one_prompt(PROMPT, 5, negative="blau: 红色", steps=2, guidance=3.5, scheduler="euler_ancestral")
    np.testing.assert_array_equal(picture, text_to_image(Package.open(tiny_package), settings).images[0])

    digest = hashlib.sha256((tiny_package / NAME).read_bytes()).hexdigest()
    assert text["parameters"].splitlines()[:2] == [PROMPT, "Negative prompt: blau: 红色"]
    assert text["parameters"].splitlines()[2].startswith(
        "Steps: 2, Sampler: Euler a, CFG scale: 3.5, Seed: 5, Size: 64x64, "
        f"Model hash: {digest[:10]}, Model: tiny, Version: handheld-diffusion "
    )
    expected = {
        "prompt": PROMPT, "negative_prompt": "blau: 红色", "seed": "5", "steps": "2", "guidance": "3.5", "scheduler": "euler_ancestral",
        "strength": "1", "model": "tiny", "precision": "fp32", "package_sha256": digest,
    }  # fmt: skip
    assert {key: text[key] for key in expected} == expected
    assert "onnxruntime " in text["versions"]
    assert os.listdir(out.parent) == ["picture.png"]


def test_several_pictures_are_numbered(tiny_package: Path, tmp_path: Path) -> None:
    done = generate(tiny_package, PROMPT, "--count", 2, "--seed", 7, "--steps", 1, "--out", tmp_path / "p.png", "--low-memory")
    assert done.exit_code == 0, done.output
    seeds = {}
    for name in sorted(os.listdir(tmp_path)):
        with Image.open(tmp_path / name) as image:
            seeds[name] = image.text["seed"]
    assert seeds == {"p-0.png": "7", "p-1.png": "8"}


def test_image_and_mask_are_used(tiny_package: Path, tmp_path: Path) -> None:
    photo, mask = tmp_path / "photo.jpg", tmp_path / "mask.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)).save(photo)
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(mask)
    drawn = {}
    for name, more in {"text": [], "image": ["--image", photo, "--strength", 0.5], "mask": ["--image", photo, "--mask", mask]}.items():
        done = generate(tiny_package, PROMPT, "--steps", 2, "--out", tmp_path / f"{name}.png", *more)
        assert done.exit_code == 0, done.output
        with Image.open(tmp_path / f"{name}.png") as image:
            drawn[name] = np.asarray(image).astype(int)
            assert ("Denoising strength: 0.5" in image.text["parameters"]) == (name == "image")
    assert np.abs(drawn["text"] - drawn["image"]).max() > 10
    assert np.abs(drawn["text"] - drawn["mask"]).max() > 10


def test_a_long_prompt_is_a_warning(tiny_package: Path, tmp_path: Path) -> None:
    done = generate(tiny_package, "red " * 80 + "circle", "--steps", 1, "--out", tmp_path / "p.png")
    assert done.exit_code == 0
    assert "warning: the prompt has" in done.stderr
    assert "circle' is not seen" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--height", 63], "error: a height of 63 is not possible: this package takes multiples of"),
        (["--steps", -3], "error: -3 steps are not possible"),
        (["--steps", 0], "error: 0 steps are not possible"),
        (["--scheduler", "dpm"], "error: there is no scheduler 'dpm'"),
        (["--image", "nowhere.png"], "error: there is no picture at 'nowhere.png'"),
        (["--image", __file__], "can't be read as a picture"),
        (["--mask", "mask.png"], "error: --mask needs --image: the picture that it masks"),
        (["--count", 0], "error: 0 pictures can't be made: give 1 or more"),
        (["--seed", 2**64], "error: the seed 18446744073709551616 does not fit in 64 bits"),
        (["--ep", "gpu"], "error: 'gpu' is no execution provider"),
        (["--out", "picture.jpg"], "error: 'picture.jpg' is no name for a picture: give one that ends in .png"),
        (["--out", "/proc/none/picture.png", "--steps", 1], "error: can't write '/proc/none/picture.png'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(arguments: list[object], sentence: str, tiny_package: Path, tmp_path: Path) -> None:
    done = generate(tiny_package, PROMPT, "--out", tmp_path / "p.png", *arguments)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_no_package_is_exit_2(tmp_path: Path) -> None:
    done = generate(tmp_path / "none", PROMPT, "--out", tmp_path / "p.png")
    assert done.exit_code == 2
    assert "error: there is no package at" in done.stderr


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(b"the old one")

    def full(_self: Image.Image, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match=r"can't write '.*p.png': No space left on device"):
        pictures.write_png(path, np.zeros((8, 8, 3), np.uint8), {})
    assert path.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["p.png"]


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers", "onnx"):
            raise ImportError(f"{name} is not for the runtime")

sys.meta_path.insert(0, Refuse())
import importlib, pkgutil
import runtime
for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
    importlib.import_module(module.name)
from runtime.generate import main
main(sys.argv[1:])
"""


def test_all_of_it_runs_where_torch_can_not_be_imported(tiny_package: Path, tmp_path: Path) -> None:
    pngs = []
    for name in ("first", "second"):  # two processes: same seed, same bytes
        arguments = [tiny_package, PROMPT, "--steps", "2", "--seed", "1", "--out", tmp_path / f"{name}.png"]
        done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pngs.append((tmp_path / f"{name}.png").read_bytes())
    assert pngs[0] == pngs[1]
