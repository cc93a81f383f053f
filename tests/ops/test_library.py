"""The kernel library as a whole."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .harness import ISAS


def test_code_for_one_instruction_set_stays_in_its_file(ops_library: Path) -> None:
    """The linker keeps one copy of an inline function: none may come from a file that is compiled for a newer machine."""
    nm = shutil.which("nm")
    assert nm is not None, "binutils come with the compiler"
    objects = [path for path in (ops_library.parent / "CMakeFiles").rglob("*.cc.o") if path.name.split(".")[0].rpartition("_")[2] in ISAS]
    assert objects
    for path in objects:
        symbols = subprocess.run([nm, "--defined-only", str(path)], capture_output=True, text=True, check=True).stdout
        shared = [line.split()[-1] for line in symbols.splitlines() if line.split()[-2] in "WVu"]
        assert shared == [], path.name
