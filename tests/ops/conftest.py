"""The kernel library, built when it is older than its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES, BUILD = ROOT / "runtime" / "ops", ROOT / "build" / "ops"


@pytest.fixture(scope="session")
def ops_library(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Path of libhandheld_ops: the one that HANDHELD_OPS_LIBRARY names, or that of `make kernels`, brought up to date."""
    if named := os.environ.get("HANDHELD_OPS_LIBRARY"):
        return Path(named)
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        pytest.skip("there is no C++ compiler on this machine, so the kernels cannot be built")
    once("kernels", lambda _: build())
    (library,) = BUILD.glob("libhandheld_ops.*")
    return library


def build() -> None:
    """What `make kernels` does; the build system sees by itself what is stale."""
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    commands = [["cmake", "--build", str(BUILD)]]
    if not (BUILD / "build.ninja").is_file():
        options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DPython3_EXECUTABLE={sys.executable}"]
        commands.insert(0, ["cmake", "-S", str(SOURCES), "-B", str(BUILD), *options])
    for command in commands:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
