"""The rooms: who may import what, and what every committed file keeps to."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = ("export", "graph_passes", "runtime", "android_bench")

# The import table. A row holds for everything below its path, and adds to the rows above it; a name stands for all that is below it.
# Nobody but export sees torch, diffusers, transformers and the hub.
MAY_IMPORT: dict[str, set[str]] = {
    "graph_passes": {"graph_passes", "numpy", "onnx", "onnx_ir", "onnxscript", "onnxsim", "click", "tqdm"},
    "graph_passes/plan.py": {"onnxruntime.tools"},
    "runtime": {"runtime", "numpy", "onnxruntime", "tokenizers", "PIL", "click", "tqdm"},
    "runtime/report": {"jinja2", "markupsafe", "matplotlib"},
    "android_bench": {"android_bench", "runtime.manifest", "runtime.report", "click", "tqdm"},
    "export": {
        *("export", "graph_passes", "runtime"),
        *("torch", "diffusers", "transformers", "safetensors", "huggingface_hub", "accelerate"),
        *("numpy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tokenizers", "PIL", "click", "tqdm"),
    },
}
MODULES = sorted(path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(source: str, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a module imports, at its top or lazily; relative names are made absolute."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = [*base, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*origin, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, node.args[0].value


def refused(source: str, path: str) -> list[str]:
    """The imports of a module that the table does not allow it, as sentences."""
    allowed = {name for row, names in MAY_IMPORT.items() if path == row or path.startswith(f"{row}/") for name in names}
    return [
        f"{path}:{line} imports {name}"
        for line, name in imported(source, path)
        if name.split(".")[0] not in sys.stdlib_module_names and not any(name == entry or name.startswith(f"{entry}.") for entry in allowed)
    ]


@pytest.mark.parametrize("path", MODULES)
def test_a_module_imports_only_what_its_room_may(path: str) -> None:
    assert refused((ROOT / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("path", "source", "name"),
    [
        ("runtime/session.py", "import torch", "torch"),
        ("runtime/session.py", "def load():\n    from torch.nn import functional", "torch.nn.functional"),
        ("runtime/session.py", "import importlib\nimportlib.import_module('onnx')", "onnx"),
        ("runtime/session.py", "from export.trace import trace", "export.trace.trace"),
        ("runtime/bench.py", "import matplotlib.pyplot", "matplotlib.pyplot"),
        ("graph_passes/rules/remove_cast.py", "from ...runtime import errors", "runtime.errors"),
        ("graph_passes/rules/remove_cast.py", "import onnxruntime", "onnxruntime"),
        ("graph_passes/plan.py", "from onnxruntime import InferenceSession", "onnxruntime.InferenceSession"),
        ("android_bench/adb.py", "from runtime import session", "runtime.session"),
    ],
)
def test_the_table_refuses(path: str, source: str, name: str) -> None:
    assert refused(source, path) == [f"{path}:{source.count(chr(10)) + 1} imports {name}"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("runtime/report/page.py", "import jinja2"),
        ("graph_passes/plan.py", "from onnxruntime.tools.mobile_helpers import usability_checker"),
        ("graph_passes/rules/remove_cast.py", "from ..rule import Rule"),
        ("android_bench/adb.py", "from runtime.manifest import Package"),
        ("export/trace.py", "import torch\nfrom graph_passes.step import run"),
    ],
)
def test_the_table_allows(path: str, source: str) -> None:
    assert refused(source, path) == []


def test_every_folder_of_python_files_is_a_package_that_is_installed() -> None:
    # the kernels' room holds C++, and a script of its build
    folders = {str(Path(path).parent).replace("/", ".") for path in MODULES if not path.startswith("runtime/ops/")}
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])
    assert [folder for folder in folders if not (ROOT / folder.replace(".", "/") / "__init__.py").is_file()] == []


def test_every_data_file_of_a_package_is_installed() -> None:
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, names in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in names
    ]
    # the kernels of runtime/ops are compiled from the checkout, not installed
    data = [path for path in committed() if path.startswith(ROOMS) and not path.endswith(".py") and not path.startswith("runtime/ops/")]
    assert [path for path in data if not any(fnmatch(path, pattern) for pattern in patterns)] == []


def test_a_custom_op_has_one_name_in_three_trees() -> None:
    rules = {path.stem for path in (ROOT / "graph_passes/ops").glob("*.py")} - {"__init__"}
    kernels = {path.parent.name for path in (ROOT / "runtime/ops").glob("*/ort_op.cc")}
    tests = {path.parent.name for path in (ROOT / "tests/ops").glob("*/test_*.py")}
    assert rules == kernels == tests


def test_no_committed_file_names_a_folder_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.}])(/(home|root|Users|work|tmp)/\w|[A-Z]:\\\w)")
    found = []
    for path in committed():
        content = (ROOT / path).read_bytes()
        if b"\0" in content:
            continue
        lines = content.decode("utf-8").splitlines()
        found += [f"{path}:{number}: {line.strip()[:100]}" for number, line in enumerate(lines, 1) if machine.search(line)]
    assert found == []


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-interop.txt", "constraints-peers.txt"])
def test_constraints_are_exact_and_come_from_any_index(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    # a local version such as +cpu exists on one index only
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert len({normalized(line) for line in lines}) == len(lines)


def test_every_dependency_is_pinned() -> None:
    pinned = {normalized(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line}
    project = PROJECT["project"]
    declared = {normalized(name) for names in (project["dependencies"], *project["optional-dependencies"].values()) for name in names}
    assert declared - {"handheld-diffusion"} <= pinned


def normalized(requirement: str) -> str:
    """The name of a requirement as the index compares it: `huggingface_hub==2.4.0` -> `huggingface-hub`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ]", requirement)[0]).lower()


def committed() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in listing.split("\0") if path and (ROOT / path).is_file()]
