"""What an export says it will need, and what it refuses to begin without."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from export import estimate as module
from export.estimate import Estimate, available_memory, estimate, require
from export.weights import Checkpoint, open_checkpoint
from runtime.errors import InputError

GB = 1e9
NEEDED = Estimate(memory=6.2 * GB, disk=8.6 * GB, package=4.3 * GB, seconds=150)


@pytest.fixture
def sd14(small_is_tiny: Path, tmp_path: Path) -> Checkpoint:
    """Stable Diffusion 1.4 with random weights: nothing is written before a module is asked for."""
    return open_checkpoint("sd14", "random", tmp_path / "work")


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * GB))
    monkeypatch.setattr(module, "available_memory", lambda: 100 * GB)


def test_the_estimate_comes_from_the_weights(sd14: Checkpoint) -> None:
    """SD 1.4 with its safety checker: 1.370 billion parameters of four bytes, each made while it is written."""
    parameters = sum(map(sd14.parameters, sd14.configs))
    assert parameters == pytest.approx(1.370e9, rel=1e-3)
    needed = estimate(sd14, "none")
    assert needed.package == 4 * parameters
    assert needed.disk == pytest.approx(needed.package, rel=0.01)
    assert needed.memory < 1.5 * GB  # the weights are never in memory at once


def test_a_check_costs_memory_and_time_and_no_disk(sd14: Checkpoint) -> None:
    none, quick, full = (estimate(sd14, check) for check in ("none", "quick", "full"))
    assert none.memory < quick.memory == full.memory < 2 * quick.package  # one component at a time
    assert none.seconds < quick.seconds < full.seconds
    assert quick.disk == full.disk == none.disk  # torch's weights are made layer by layer


def test_sdxl_takes_the_time_of_its_graph_and_the_memory_of_its_pictures(small_is_tiny: Path, tmp_path: Path) -> None:
    """Four times as many weights and twice as many tensors as SD 1.4; tracing keeps no more of them. The full check is at 1024x1024."""
    sd, xl = (open_checkpoint(alias, "random", tmp_path / alias) for alias in ("sd14", "sdxl"))
    assert estimate(xl, "none").memory == estimate(sd, "none").memory
    assert estimate(xl, "none").seconds == pytest.approx(110, abs=10)
    assert estimate(xl, "quick").memory == estimate(sd, "quick").memory
    assert estimate(xl, "full").memory > estimate(xl, "quick").memory + 3 * GB


def test_the_estimate_is_told_in_a_line() -> None:
    assert str(NEEDED) == "about 6.2 GB of memory, 8.6 GB of disk (4.3 GB stay), 2 minutes"
    assert str(Estimate(GB, GB, GB, 119)).endswith(", 119 seconds")


@pytest.mark.usefixtures("roomy")
def test_a_machine_with_room_is_fine(tmp_path: Path) -> None:
    require(NEEDED, tmp_path / "not" / "there" / "yet")


@pytest.mark.usefixtures("roomy")
def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or SimpleNamespace(free=8.5 * GB))
    with pytest.raises(InputError, match=r"the disk of '.*' has 8\.5 GB free where this export needs 8\.6 GB: free some space or choose "
                                         r"another disk"):
        require(NEEDED, tmp_path / "not" / "there" / "yet")
    assert asked == [tmp_path]  # the folder that is there


@pytest.mark.usefixtures("roomy")
def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 6.1 * GB)
    with pytest.raises(InputError, match=r"6\.1 GB of memory are free where this export needs 6\.2 GB: close other programs, or take "
                                         r"--check none, which needs the least"):
        require(NEEDED, tmp_path / "out")


@pytest.mark.usefixtures("roomy")
def test_where_the_kernel_does_not_tell_memory_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: None)
    require(NEEDED, tmp_path / "out")


def test_available_memory_is_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "MemTotal:  8000 kB\nMemFree:  100 kB\nMemAvailable:  2000 kB\n")
    assert available_memory() == 2000 * 1024

    def nothing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", nothing)
    assert available_memory() is None
