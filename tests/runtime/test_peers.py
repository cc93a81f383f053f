"""The contest with peers, with a stand-in for OpenVINO: ratios of one run, and no time for what computes something else."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runtime import peers
from runtime.errors import CheckFailed, InputError, Unavailable
from runtime.manifest import Package

STAND_IN = """
import json, sys
import numpy as np, onnxruntime
model, inputs, outputs, precision, threads, repeat = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
results = session.run(None, dict(np.load(inputs)))
noise = {noise} if precision == "bf16" else 0
np.savez(outputs, **{{port.name: value + noise for port, value in zip(session.get_outputs(), results)}})
print(json.dumps({{"load_ms": 5, "median_ms": 8.0 if precision == "f32" else 4.0, "runs": int(repeat), "version": "0"}}))
"""


def contest(package: Path, folder: Path, noise: float, monkeypatch: pytest.MonkeyPatch) -> peers.Contest:
    script = folder / "stand_in.py"
    script.write_text(STAND_IN.format(noise=noise))
    monkeypatch.setattr(peers, "SCRIPT", script)
    monkeypatch.setattr(peers, "COMPONENTS", ("vae_decoder",))
    return peers.Contest(Package.open(package), 64, 64, 1, 2, 1, Path(sys.executable))


def test_everybody_is_measured_and_compared_in_one_run(tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    made = replace(contest(tiny_package, tmp_path, 1e-3, monkeypatch), rounds=2)
    rows = made.run([Package.open(tiny_package)], began.append)
    turns = [what.rpartition("; ")[2] for what in began]
    assert turns == ["ONNX Runtime fp32", "OpenVINO fp32", "OpenVINO bf16", f"{tiny_package.name} fp32", *turns[3::-1]]
    assert all(row["median_ms"] == pytest.approx(sum(row["rounds_ms"]) / 2) and row["runs"] == 2 for row in rows)
    assert [(row["who"], row["precision"]) for row in rows] == [
        *(("ONNX Runtime", "fp32"), ("OpenVINO", "fp32"), ("OpenVINO", "bf16"), (tiny_package.name, "fp32")),
    ]
    assert rows[0]["ratio"] == 1.0
    assert rows[1]["ratio"] == pytest.approx(8.0 / rows[0]["median_ms"], abs=1e-3)
    assert rows[2]["snr_db"] < 100 < rows[1]["snr_db"]
    line = next(line for line in peers.table(rows).splitlines() if " bf16 " in line and "OpenVINO" in line).split()
    assert line[-5:-3] == ["0.50", "1.00"]  # of OpenVINO's own time in fp32, and in bf16


def test_what_computes_something_else_is_not_timed(tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckFailed, match=r"'vae_decoder' in OpenVINO \(bf16\) is .* dB from ONNX Runtime's result, where 15 dB"):
        contest(tiny_package, tmp_path, 1.0, monkeypatch).run([])


def test_an_openvino_that_does_not_run_is_told(tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = contest(tiny_package, tmp_path, 0.0, monkeypatch)
    peers.SCRIPT.write_text("raise SystemExit('no such device')")
    with pytest.raises(Unavailable, match="OpenVINO does not run 'vae_decoder': no such device"):
        made.run([])


def test_peers_run_the_portable_graph(tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(tiny_package, tmp_path / "cpu")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "target": "cpu"}))
    with pytest.raises(InputError, match="is made for cpu: peers run the portable graph"):
        peers.main.main([str(copy), "--baseline", str(copy), "--openvino", sys.executable, "--debug"], standalone_mode=False)
