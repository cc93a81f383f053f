"""What tests of several rooms share, made once per run of the tests: packages, and graphs as torch's exporters write them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from .architectures import Traced

ROOT = Path(__file__).resolve().parent.parent
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: the folder that `make` filled, in one of the processes that run the tests; the others wait for it.

    It is in the temporary folder of this run: the next run makes it again. Nobody may write to it: copy it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # a worker's own folder is in that of the run

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        made = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                unfinished = tmp_path_factory.mktemp(name)
                make(unfinished)
                unfinished.rename(made)
        return made

    return folder


@pytest.fixture(scope="session")
def traced(once: Once) -> Callable[..., Traced]:
    """`traced(architecture, exporter, opset=20)`: a graph of `architectures.py` as one of torch's exporters writes it."""
    from .architectures import Traced, write

    def graph(architecture: str, exporter: str, opset: int = 20) -> Traced:
        return Traced(once(f"{architecture}-{exporter}-{opset}", lambda folder: write(folder, architecture, exporter, opset)))

    return graph


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The trained model that the project ships, in diffusers layout."""
    return ROOT / "models" / "tiny"


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tiny_checkpoint: Path) -> Path:
    """Its tokenizer. Nobody may write to it."""
    return tiny_checkpoint / "tokenizer"


@pytest.fixture(scope="session")
def tiny_package(tiny_checkpoint: Path, once: Once) -> Path:
    """Its portable package as the command makes it, checked in full. Nobody may write to it: copy it."""
    return _exported(once, "tiny", str(tiny_checkpoint), "--check", "full")


@pytest.fixture(scope="session")
def sdxl_package(once: Once) -> Path:
    """The portable package of a model of SDXL's structure and seeded weights, unchecked. Nobody may write to it."""
    return _exported(once, "tiny-sdxl", "tiny-sdxl", "--check", "none")


@pytest.fixture(scope="session")
def refiner_package(once: Once) -> Path:
    """That of SDXL's refiner, whose latents are those of `sdxl_package`. Nobody may write to it."""
    return _exported(once, "tiny-sdxl-refiner", "tiny-sdxl-refiner", "--check", "none")


@pytest.fixture(scope="session")
def turbo_package(sdxl_package: Path, once: Once) -> Path:
    """That of SDXL-Turbo, which is SDXL with other weights and another scheduler: in the small models the weights of one seed are the
    same too, so that its graphs are those of `sdxl_package`. Nobody may write to it."""
    from .turbo import turbo

    return once("package-tiny-sdxl-turbo", lambda folder: turbo(sdxl_package, folder / "package", folder)) / "package"


@pytest.fixture(scope="session")
def lcm_package(once: Once) -> Path:
    """That of LCM, Stable Diffusion that takes its guidance as an input. Nobody may write to it."""
    return _exported(once, "tiny-lcm", "tiny-lcm", "--check", "none")


def _exported(once: Once, name: str, model: str, *options: str) -> Path:
    """What `python -m export` makes of a model."""

    def export(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "export", model, str(folder / "package"), *options], check=True, cwd=ROOT)

    return once(f"package-{name}", export) / "package"
