"""A small model of random weights in a diffusers folder: what opening a checkpoint is tested on."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small_model

from export import aliases


@pytest.fixture(scope="session")
def parts() -> dict[str, object]:
    """The modules themselves, as diffusers and transformers make them."""
    return {"text_encoder": small_model.text_encoder(), "unet": small_model.unet(), "vae": small_model.vae(),
            "safety_checker": small_model.safety_checker()}


@pytest.fixture(scope="session")
def small_folder(parts: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved. Nobody may write to it."""
    return small_model.save(tmp_path_factory.mktemp("models") / "small", parts)


@pytest.fixture
def small_is_tiny(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the small model in the place of the embedded one, which need not be trained for these tests."""
    monkeypatch.setattr(aliases, "TINY", small_folder)
    return small_folder


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"
