"""Two processes build a package: what goes wrong in the second one is told by the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.build import Order, build
from export.weights import open_checkpoint
from runtime.errors import CheckFailed, InputError


def test_an_error_in_the_second_process_is_the_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.build.HERE", ())  # nothing here: what follows comes from there
    checkpoint = open_checkpoint("tiny-sd21", None, tmp_path)
    pipeline = {"dynamic": False, "height": 64, "width": 64, "batch": 1, "vae_scale_factor": 8}
    order = Order("tiny-sd21", None, False, "portable", pipeline, tmp_path / "package", tmp_path)
    with pytest.raises(InputError, match=r"^there is no model 'tiny-sd22': did you mean tiny-sd21"):
        build(replace(order, model="tiny-sd22"), checkpoint, str)


def test_a_fault_in_the_second_process_is_not_taken_for_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.build.HERE", ())
    checkpoint = open_checkpoint("tiny-sd21", None, tmp_path)
    pipeline = {"dynamic": False, "height": 64, "width": 64, "batch": 1, "vae_scale_factor": 8}
    with pytest.raises(CheckFailed, match=r"^the process that exports text_encoder, unet, vae_decoder, vae_encoder failed: "):
        build(Order("tiny-sd21", None, False, "toaster", pipeline, tmp_path / "package", tmp_path), checkpoint, str)
