"""The safety checker: CLIP's preprocessing against transformers, and what happens to flagged pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from transformers import CLIPImageProcessorPil

from runtime.errors import InputError
from runtime.manifest import NAME, Package, sha256_of
from runtime.pipelines.safety_checker import clip_pixels
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image

CONFIG = {
    "crop_size": {"height": 224, "width": 224},
    "size": {"shortest_edge": 224},
    "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3, "rescale_factor": 0.00392156862745098,
}  # fmt: skip


@pytest.mark.parametrize("shape", [(64, 64), (512, 384), (300, 451)])
def test_preprocessing_is_clips(shape: tuple[int, int]) -> None:
    pictures = np.random.default_rng(2).integers(0, 256, (2, *shape, 3), np.uint8)
    expected = CLIPImageProcessorPil(**CONFIG)([Image.fromarray(p) for p in pictures], return_tensors="np").pixel_values
    ours = clip_pixels(pictures, CONFIG)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=8 * 2**-23)
    old_style = {**CONFIG, "size": 224, "crop_size": 224}
    np.testing.assert_array_equal(clip_pixels(pictures, old_style), ours)


def checker(threshold: float) -> onnx.ModelProto:
    """A stand-in with the interface of the real one, which flags pictures whose mean is above `threshold`."""
    nodes = [
        helper.make_node("ReduceMean", ["clip_input", "axes"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "threshold"], ["has_nsfw_concepts"]),
        helper.make_node("Reshape", ["has_nsfw_concepts", "column"], ["flags"]),
        helper.make_node("Where", ["flags", "zero", "images"], ["out_images"]),
    ]
    values = {"axes": np.array([1, 2, 3]), "threshold": np.float32(threshold), "column": np.array([-1, 1, 1, 1]), "zero": np.float32(0)}
    float32, image = TensorProto.FLOAT, ["batch", "height", "width", 3]
    clip_input = helper.make_tensor_value_info("clip_input", float32, ["batch", 3, 224, 224])
    graph = helper.make_graph(
        nodes, "checker",
        [clip_input, helper.make_tensor_value_info("images", float32, image)],
        [
            helper.make_tensor_value_info("out_images", float32, image),
            helper.make_tensor_value_info("has_nsfw_concepts", TensorProto.BOOL, ["batch"]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def checked_package(tiny_package: Path, tmp_path: Path) -> Path:
    """The tiny package with a safety checker that finds bright pictures unsafe."""
    package = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    (package / "safety_checker").mkdir()
    (package / "feature_extractor").mkdir()
    (package / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    onnx.save(checker(-0.5), package / "safety_checker" / "model.onnx")
    manifest: dict[str, Any] = json.loads((package / NAME).read_text())
    manifest["components"]["safety_checker"] = {
        "file": "safety_checker/model.onnx", "sha256": "", "opset": 20,
        "inputs": [
            {"name": "clip_input", "dtype": "float32", "shape": ["batch", 3, 224, 224]},
            {"name": "images", "dtype": "float32", "shape": ["batch", "height", "width", 3]},
        ],
        "outputs": [],
    }  # fmt: skip
    for name in ("safety_checker/model.onnx", "feature_extractor/preprocessor_config.json"):
        manifest["files"][name] = {"bytes": (package / name).stat().st_size, "sha256": sha256_of(package / name)}
    (package / NAME).write_text(json.dumps(manifest))
    return package


def test_flagged_pictures_are_black_and_said_to_be(checked_package: Path) -> None:
    settings = Settings(("a white background", "a black background"), (1, 2), steps=3)
    free = text_to_image(Package.open(checked_package), Settings(settings.prompts, settings.seeds, steps=3, safety_checker=False))
    assert free.flagged == (False, False)
    assert "safety_checker" not in free.timings
    means = clip_pixels(free.images, CONFIG).mean(axis=(1, 2, 3))
    brighter = int(means.argmax())
    onnx.save(checker(float(means.mean())), checked_package / "safety_checker" / "model.onnx")  # between the two

    result = text_to_image(Package.open(checked_package), settings)
    assert result.flagged == (brighter == 0, brighter == 1)
    assert not result.images[brighter].any()
    np.testing.assert_array_equal(result.images[1 - brighter], free.images[1 - brighter])
    assert result.warnings == (f"the safety checker blackened picture {brighter}",)


def test_a_checker_without_its_preprocessing_is_refused(checked_package: Path) -> None:
    shutil.rmtree(checked_package / "feature_extractor")
    manifest = json.loads((checked_package / NAME).read_text())
    del manifest["files"]["feature_extractor/preprocessor_config.json"]
    (checked_package / NAME).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"has a safety checker and no feature_extractor/preprocessor_config.json: export it again"):
        text_to_image(Package.open(checked_package), Settings.one_prompt("x", steps=1))
