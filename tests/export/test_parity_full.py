"""Parity of a large model, one component at a time: what it measures, what it stops, and that it leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result

from export import parity_full
from export.component import Component
from export.families import sdxl
from export.reference import Arrays


@pytest.fixture(autouse=True)
def _signals_stay() -> Iterator[None]:
    """The command unwinds on SIGTERM; the tests' own process goes on as it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two text encoders of SDXL alone, which are traced in a few seconds."""
    components = sdxl.components
    monkeypatch.setattr(sdxl, "components", lambda *arguments: components(*arguments)[:2])


def run(work: Path, *options: str) -> Result:
    return CliRunner().invoke(parity_full.main, ["tiny-sdxl", "--weights", "random:3", "--work", str(work), *options])


@pytest.mark.parametrize(("target", "names"), [
    ("portable", ["text_encoder", "text_encoder_2"]),
    ("nnapi", ["text_encoder_2"]),  # static axes, and a host's part
    ("cuda", ["text_encoder_2"]),  # operators that the CPU's provider has not
])
def test_every_component_is_measured(target: str, names: list[str], tmp_path: Path) -> None:
    only = [argument for name in names for argument in ("--component", name)]
    result = run(tmp_path / "work", "--target", target, *only, "--json", str(tmp_path / "found.json"))
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["model"], found["target"]) == ("tiny-sdxl", target)
    assert [row["component"] for row in found["rows"]] == names
    for row in found["rows"]:
        assert row["parameters"] > 10_000
        assert 100 < row["snr_db"] < 160
        assert 0 < row["max_abs"] < 1e-3
        assert 0 < row["anonymous_gb"] < row["resident_gb"] < 8
        assert all(row[f"{step}_seconds"] >= 0 for step in ("torch", "trace", "passes", "write", "onnx"))
    assert list((tmp_path / "work").iterdir()) == []


def test_a_component_that_differs_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = parity_full.component_outputs

    def wrong(component: Component, inputs: Arrays) -> Arrays:
        outputs = right(component, inputs)
        return {name: np.flip(array, -1) for name, array in outputs.items()}

    monkeypatch.setattr(parity_full, "component_outputs", wrong)
    result = run(tmp_path, "--component", "text_encoder_2")  # without the one before it
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: 'text_encoder_2' differs from torch: its 'text_embeds' has an SNR of")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "free", "sentence"), [
    (("--target", "toaster"), 1e12, "There is no pipeline for the target 'toaster'"),
    (("--component", "vae"), 1e12, "error: 'tiny-sdxl' has no component 'vae': it has text_encoder, text_encoder_2"),
    ((), 1e6, "the disk of '.*' has 0.0 GB free where the largest component needs 0.2 GB: free some space or choose another"),
])
def test_what_it_does_not_begin(options: tuple[str, ...], free: float, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                ) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    result = run(tmp_path, *options)
    assert result.exit_code == 2
    assert re.search(sentence, result.stderr)
    assert list(tmp_path.iterdir()) == []
