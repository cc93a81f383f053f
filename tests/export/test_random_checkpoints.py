"""Seeded random weights in the place of a checkpoint's, marked as such."""

from __future__ import annotations

import json
from pathlib import Path

from folders import same
from transformers import CLIPTokenizer

from export.weights import open_checkpoint

COMPONENTS = ("text_encoder", "unet", "vae", "safety_checker")


def test_random_weights_are_those_of_their_seed(small_is_tiny: Path, tmp_path: Path) -> None:
    wanted = ("random:4", "random:4", "random")
    first, again, other = (open_checkpoint("tiny-sd21", weights, tmp_path / str(i)) for i, weights in enumerate(wanted))
    vae = first.module("vae")  # before the U-Net: the order does not matter
    assert same(first.module("unet"), again.module("unet"))
    assert same(vae, again.module("vae"))
    assert not same(vae, other.module("vae"))
    assert first.source["seed"] == 4
    assert other.source["seed"] == 0


def test_random_weights_are_marked_and_their_tokenizer_too(small_is_tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint("sd21", "random:3", tmp_path)
    provenance = checkpoint.provenance()
    assert (provenance["kind"], provenance["id"], provenance["seed"], provenance["sha256"]) == ("random", "sd21", 3, {})
    assert provenance["tokenizer"].startswith("a stand-in: the vocabulary of the embedded model")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.pad_token == "!"
    assert tokenizer("ab", padding="max_length").input_ids[:5] == [511, 64, 320, 512, 0]
    assert len(tokenizer) <= checkpoint.configs["text_encoder"]["vocab_size"]
    assert json.loads(checkpoint.files["tokenizer/tokenizer_config.json"].read_text())["pad_token"] == "!"


def test_sd14_brings_its_safety_checker(small_is_tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint("sd14", "random", tmp_path)
    assert tuple(checkpoint.configs) == COMPONENTS
    assert json.loads(checkpoint.files["feature_extractor/preprocessor_config.json"].read_text())["crop_size"] == 224
    assert checkpoint.scheduler["_class_name"] == "PNDMScheduler"
    assert checkpoint.parameters("unet") == 859_520_964


def test_a_folder_can_have_random_weights(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(small_folder), "random:1", tmp_path)
    assert checkpoint.module("unet").state_dict().keys() == parts["unet"].state_dict().keys()
    assert "tokenizer" not in checkpoint.source  # its own
