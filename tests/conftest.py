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
