"""What tests of several rooms share: the embedded model, and its package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The trained model that the project ships, in diffusers layout."""
    return ROOT / "models" / "tiny"


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tiny_checkpoint: Path) -> Path:
    """Its tokenizer. Nobody may write to it."""
    return tiny_checkpoint / "tokenizer"


@pytest.fixture(scope="session")
def tiny_package(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its portable package as the command makes it, checked in full, once per run of the tests. Nobody may write to it: copy it."""
    out = tmp_path_factory.mktemp("package") / "tiny"
    subprocess.run([sys.executable, "-m", "export", str(tiny_checkpoint), str(out), "--check", "full"], check=True, cwd=ROOT)
    return out


def _seeded(alias: str, out: Path) -> Path:
    """The portable package of a model of random weights, as the command makes it, unchecked."""
    subprocess.run([sys.executable, "-m", "export", alias, str(out), "--check", "none"], check=True, cwd=ROOT)
    return out


@pytest.fixture(scope="session")
def sdxl_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of SDXL's structure. Nobody may write to it."""
    return _seeded("tiny-sdxl", tmp_path_factory.mktemp("sdxl") / "base")


@pytest.fixture(scope="session")
def refiner_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the structure of SDXL's refiner, whose latents are those of `sdxl_package`. Nobody may write to it."""
    return _seeded("tiny-sdxl-refiner", tmp_path_factory.mktemp("sdxl") / "refiner")
