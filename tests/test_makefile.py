"""What `make` offers, and that README.md names nothing that is not there."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
TARGETS = (
    "setup",
    "kernels",
    "demo",
    "test",
    "test-asan",
    "test-arm64",
    "lint",
    "export",
    "parity-full",
    "bench",
    "report",
    "ablation",
    "peers",
    "interop",
    "clean",
)


def make(*arguments: str, folder: Path = ROOT) -> str:
    # without the variables that the make around these tests hands down
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("target", TARGETS)
def test_a_dry_run_of_every_target_works(target: str) -> None:
    make("-n", target)


@pytest.mark.parametrize("arguments", [(), ("help",)])
def test_help_is_the_default_and_lists_every_target(arguments: tuple[str, ...]) -> None:
    assert set(re.findall(r"^  make ([a-z0-9-]+)  ", make(*arguments), re.MULTILINE)) == {"help", *TARGETS}


def test_export_runs_the_command_that_its_variables_name() -> None:
    asked = ("MODEL=sd14", "WEIGHTS=random:7", "TARGET=qnn", "PRECISION=fp16", "SOC=sm8650", "CHECK=quick")
    recipe = make("-n", "export", *asked).splitlines()[-1]
    assert shlex.split(recipe) == [
        *(".venv/bin/python", "-m", "export", "sd14", "build/sd14-qnn"),
        *("--target", "qnn", "--weights", "random:7", "--precision", "fp16", "--soc", "sm8650", "--check", "quick"),
    ]
    recipe = make("-n", "export").splitlines()[-1]
    assert shlex.split(recipe) == [*(".venv/bin/python", "-m", "export", "tiny", "build/tiny-cpu"), *("--target", "cpu")]


def test_the_environment_is_made_again_when_its_description_changes(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    stamp = re.compile(r"touch (\.venv/\.installed-\d+)")
    first = stamp.search(make("-n", "setup", folder=tmp_path))
    assert first is not None
    (tmp_path / ".venv").mkdir()
    (tmp_path / first[1]).touch()
    assert stamp.search(make("-n", "setup", folder=tmp_path)) is None
    with (tmp_path / "constraints.txt").open("a", encoding="utf-8") as constraints:
        constraints.write("another==1.0\n")
    assert stamp.search(make("-n", "setup", folder=tmp_path)) is not None


def test_without_a_compiler_the_kernels_are_left_to_the_bodies(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    sentence = "There is no C++ compiler ('none'), so no native kernels: the reference bodies inside the packages run in their place.\n"
    assert make("--assume-old=setup", "kernels", "CXX=none", folder=tmp_path) == sentence


def commands_of_the_readme() -> list[str]:
    """The command lines in the code blocks of README.md: no comments, continued lines joined."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_readme_begins_with_the_two_commands() -> None:
    assert commands_of_the_readme()[:2] == ["make demo", "make export MODEL=sd14"]


def test_the_readme_names_only_targets_that_are_there() -> None:
    named = {shlex.split(line, comments=True)[1] for line in commands_of_the_readme() if line.startswith("make ")}
    assert named
    assert named <= {"help", *TARGETS}


@pytest.mark.parametrize("line", [line for line in commands_of_the_readme() if "python -m" in line])
def test_the_readmes_commands_and_options_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    name = words[words.index("-m") + 1]
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    known = {option for value in vars(module).values() if isinstance(value, click.Command) for each in value.params for option in each.opts}
    assert known
    assert {word for word in words if word.startswith("--")} <= known
