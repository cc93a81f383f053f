"""The kernel library, built when it is older than its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES, BUILD = ROOT / "runtime" / "ops", ROOT / "build" / "ops"


@pytest.fixture(scope="session")
def ops_library() -> Path:
    """Path of libhandheld_ops. What `make kernels` does; the build system sees by itself what is stale."""
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        pytest.skip("there is no C++ compiler on this machine, so the kernels cannot be built")
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    commands = [["cmake", "--build", str(BUILD)]]
    if not (BUILD / "build.ninja").is_file():
        options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DPython3_EXECUTABLE={sys.executable}"]
        commands.insert(0, ["cmake", "-S", str(SOURCES), "-B", str(BUILD), *options])
    for command in commands:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    (library,) = BUILD.glob("libhandheld_ops.*")
    return library
