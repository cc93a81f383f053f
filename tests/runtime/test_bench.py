"""`python -m runtime.bench`: its statistics, its rows and its refusals. No time is asserted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from runtime import bench, measure
from runtime.errors import CheckFailed, InputError
from runtime.manifest import Package
from runtime.measure import Job, percentiles

FIELDS = {
    *("package", "ep", "component", "load_ms", "median_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"),
    *("runs", "peak_rss_mb", "assigned", "flops"),
}
Changed = Callable[[Callable[[dict[str, Any]], None]], Path]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(bench.main, [str(argument) for argument in arguments])


def test_percentiles_of_known_samples() -> None:
    """1 to 101 ms in any order: percentile p is p + 1 ms exactly."""
    seconds = np.random.RandomState(0).permutation(np.arange(1, 102)) / 1e3
    figures = percentiles(seconds.tolist())
    assert figures == pytest.approx({"median_ms": 51, "p50_ms": 51, "p90_ms": 91, "p95_ms": 96, "p99_ms": 100, "runs": 101})


def test_percentiles_between_samples_are_numpys() -> None:
    seconds = [0.004, 0.001, 0.010]
    expected = {f"p{rank}_ms": np.percentile(seconds, rank) * 1e3 for rank in (50, 90, 95, 99)}
    assert percentiles(seconds) == pytest.approx({**expected, "median_ms": 4.0, "runs": 3})


def test_rows_of_every_component_a_step_and_a_picture(tiny_package: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "bench.json"
    result = run(tiny_package, "--repeat", 2, "--warmup", 1, "--steps", 2, "--threads", 1, "--json", file)
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    components = Package.open(tiny_package).manifest.components
    rows = {row["component"]: row for row in report["rows"]}
    assert list(rows) == [*components, "prompt", "step", "pipeline"]
    for name, row in rows.items():
        assert set(row) >= FIELDS
        assert (row["package"], row["ep"], row["runs"]) == (str(tiny_package), "cpu", 2)
        assert 0 < row["median_ms"] == row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["load_ms"] > 0
        assert 20 < row["peak_rss_mb"] < 4000  # more than an interpreter, less than a machine: a unit would be a factor of 1,000
        assert list(row["assigned"]) == ["CPUExecutionProvider"], name
        assert row["assigned"]["CPUExecutionProvider"] > 10
    assert set(report["machine"]) >= {"cpu", "cores", "isa", "memory_gb", "os", "onnxruntime"}
    assert all(name in result.output for name in rows)
    parts = [rows["pipeline"][name] for name in ("prompt_ms", "step_ms", "decoding_ms")]
    assert min(parts) > 0
    figures = "the prompt {:.2f} ms, each step {:.2f} ms, decoding {:.2f} ms".format(*parts)
    assert f"A picture in 2 steps on cpu: {figures}." in result.output
    # guidance asks for two texts, and a step is the U-Net on two rows; a picture is both texts, two steps and one decoding
    flops = {name: row["flops"] for name, row in rows.items()}
    assert flops == {
        **{name: 2 * entry.macs for name, entry in components.items()},
        "prompt": 2 * flops["text_encoder"],
        "step": 2 * flops["unet"],
        "pipeline": 2 * flops["text_encoder"] + 2 * 2 * flops["unet"] + flops["vae_decoder"],
    }


def test_work_is_unknown_at_a_size_that_was_not_counted(changed: Changed) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["components"]["unet"]["macs"] = 1000

    package = Package.open(changed(change))
    height = package.manifest.pipeline["height"]
    counted = bench.Bench(package, None, None, repeat=1, warmup=0, threads=0, steps=0)
    assert counted._flops({"unet": 2}) == 4000
    if package.manifest.pipeline["dynamic"]:
        larger = bench.Bench(package, height * 2, None, repeat=1, warmup=0, threads=0, steps=0)
        assert larger._flops({"unet": 2}) == 0


def test_unavailable_provider_exits_3_with_its_sentence_and_keeps_the_other_rows(tiny_package: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    result = run(tiny_package, "--ep", "nnapi,cpu", "--repeat", 1, "--warmup", 0, "--json", file)
    assert result.exit_code == 3
    assert "error: the execution provider 'nnapi' is not available here: it needs an Android phone" in result.output
    report = json.loads(file.read_text())
    assert {row["ep"] for row in report["rows"]} == {"cpu"}
    assert "needs an Android phone" in report["errors"]["nnapi"]
    assert "unet" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ep", "nnapy"], "'nnapy' is no execution provider: did you mean nnapi"),
        (["--ep", ","], "',' names no execution provider: try cpu"),
        (["--repeat", 0], "--repeat takes 1 or more"),
        (["--height", 63], "a height of 63 is not possible: this package takes multiples of "),
    ],
)
def test_wrong_calls_exit_2(tiny_package: Path, arguments: list[object], sentence: str) -> None:
    result = run(tiny_package, *arguments)
    assert result.exit_code == 2
    assert sentence in result.output


def test_without_a_package_the_demos_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = run()
    assert result.exit_code == 2
    assert "run 'make demo' or 'python -m export tiny build/demo/package'" in result.output


def test_result_of_another_shape_is_found_before_timing(changed: Changed) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["components"]["unet"]["outputs"][0]["shape"][1] = 8

    job = Job(str(changed(change)), "cpu", "unet", 64, 64, steps=0, repeat=1, warmup=0, threads=1)
    sentence = r"'unet' gives 'out_sample' as \[1, 4, 8, 8\] where the manifest says \[1, 8, .*: nothing was timed"
    with pytest.raises(CheckFailed, match=sentence):
        measure.measure(job)


def test_nan_is_found_before_timing(edit_graph: Callable[..., Path]) -> None:
    def edit(model: Any) -> None:
        bias = next(w for w in model.graph.initializer if w.name.endswith("conv_out.bias"))
        bias.raw_data = np.full(bias.dims, np.nan, np.float32).tobytes()

    job = Job(str(edit_graph("unet", edit)), "cpu", "unet", 64, 64, steps=0, repeat=1, warmup=0, threads=1)
    with pytest.raises(CheckFailed, match="'unet' gives NaN or infinity in 'out_sample': nothing was timed"):
        measure.measure(job)


def test_other_provider_that_computes_something_else_is_not_timed(tiny_package: Path) -> None:
    one = bench.Bench(Package.open(tiny_package), None, None, repeat=1, warmup=0, threads=0, steps=0)
    one._references["unet"] = {"out_sample": np.ones(4)}
    job = Job(str(tiny_package), "webgpu", "unet", 64, 64, steps=0, repeat=1, warmup=0, threads=0)
    assert one._compare(job, {"out_sample": np.full(4, 1.01)})[0] == pytest.approx(40)
    with pytest.raises(CheckFailed, match=r"'unet' on webgpu is 6.0 dB from its result on the cpu, where 20 dB is the least"):
        one._compare(job, {"out_sample": np.full(4, 1.5)})


def test_process_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "cpu", "unet", 64, 64, steps=0, repeat=1, warmup=0, threads=0)
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        bench.start(job, tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff")  # no text at all: nobody catches that
    with pytest.raises(CheckFailed, match="the measurement of 'unet' on cpu died with exit code 1: UnicodeDecodeError"):
        bench.start(job, tmp_path)


def test_table_says_what_was_asked_and_what_ran() -> None:
    row = {"package": "p", "ep": "qnn", "component": "unet", "load_ms": 10.0, **percentiles([0.002] * 4), "peak_rss_mb": 99.5}
    row |= {"assigned": {"QNNExecutionProvider": 300, "CPUExecutionProvider": 7}, "flops": 4_000_000, "snr_db_against_cpu": 61.2}
    head, _, line = bench.table([row]).splitlines()
    assert re.split("  +", head) == [*bench.COLUMNS]
    assert re.split("  +", line) == ["qnn", "unet", "10", "2.00", "2.00", "2.00", "4", "2.0", "100", "61.2 dB", "QNN 300, CPU 7"]
