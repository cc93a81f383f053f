"""`python -m runtime.bench`: latency, load time, memory and placement of every component of a package, per execution provider."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from runtime import calibrate
from runtime.cli import command
from runtime.compare import decibels, max_abs, snr_db
from runtime.errors import CheckFailed, HandheldError, InputError, Unavailable
from runtime.inputs import size_of
from runtime.machine import describe
from runtime.manifest import Package
from runtime.measure import PIPELINE, PROMPTS, STEP, Job, write_job
from runtime.pipelines.conditioning import text_encoders
from runtime.placement import predicted
from runtime.providers import provider

DEMO_PACKAGE = Path("build/demo/package")
ACCELERATORS = ("nnapi", "coreml", "qnn", "xnnpack", "webgpu")  # where they are not at hand, the package's plan is shown
PICTURES = 3  # whole pictures are timed at most this often
MINIMUM_SNR_DB = 20.0  # half precision gives 40 and more: below this another provider does not compute the same function
COLUMNS = ("provider", "component", "load ms", "median ms", "p90 ms", "p99 ms", "runs", "GFLOP/s", "peak MB", "vs cpu", "nodes ran on")
Row = dict[str, Any]


def demo_package() -> Path:
    """The package of the embedded model. Errors: InputError where it was not made yet."""
    if not DEMO_PACKAGE.is_dir():
        raise InputError(f"there is no package at '{DEMO_PACKAGE}': name one, or run 'make demo' or 'python -m export tiny {DEMO_PACKAGE}'")
    return DEMO_PACKAGE


class Bench:
    """The measurements of one package. `run` may be called once; `rows` and `errors` fill up as it goes."""

    def __init__(self, package: Package, height: int | None, width: int | None, repeat: int, warmup: int, threads: int, steps: int) -> None:
        """`steps` 0: no whole pictures. Errors: InputError for an impossible size or count."""
        if repeat < 1 or warmup < 0 or threads < 0 or steps < 0:
            raise InputError("--repeat takes 1 or more; --warmup, --threads and --steps take 0 or more")
        self.package = package
        self.height, self.width = size_of(package, height, width)
        self.repeat, self.warmup, self.threads, self.steps = repeat, warmup, threads, steps
        self.rows: list[Row] = []
        self.errors: dict[str, HandheldError] = {}  # by provider
        self._references: dict[str, dict[str, np.ndarray]] = {}  # outputs of the cpu provider, by component

    def jobs(self, eps: Sequence[str]) -> Iterator[Job]:
        """Every measurement: per provider each component, then the texts, a step, a picture."""
        components = list(self.package.manifest.components)
        if "unet" in components:
            components += [*([PROMPTS] if self._encoders() else []), STEP, *([PIPELINE] if self.steps else [])]
        for ep in eps:
            for component in components:
                repeat = min(self.repeat, PICTURES) if component == PIPELINE else self.repeat
                path = str(self.package.path)
                yield Job(path, ep, component, self.height, self.width, self.steps, repeat, self.warmup, self.threads)

    def run(self, eps: Sequence[str]) -> None:
        """Measures one job after the other. A provider that fails is put into `errors`, and the next one gets its turn."""
        for ep in eps:
            try:
                if provider(ep).times_nothing:
                    raise Unavailable(
                        f"the execution provider '{ep}' is an emulator here, whose time says nothing of a phone's: measure on a "
                        "Snapdragon, with 'python -m android_bench' or this command there"
                    )
            except Unavailable as error:
                self.errors[ep] = error
        jobs = list(self.jobs([ep for ep in eps if ep not in self.errors]))
        work = [self._work(job) for job in jobs]
        bar_format = "{percentage:3.0f} %|{bar}| {elapsed}, about {remaining} left  {desc}"
        with (
            tempfile.TemporaryDirectory(prefix="handheld-bench-") as folder,
            tqdm(total=sum(work), bar_format=bar_format, leave=False, disable=None) as bar,
        ):
            for job, amount in zip(jobs, work, strict=True):
                bar.set_description_str(f"{job.ep} {job.component}")
                if job.ep not in self.errors:
                    try:
                        self.rows.append(self._row(job, Path(folder)))
                    except HandheldError as error:
                        self.errors[job.ep] = error
                bar.update(amount)

    def report(self) -> dict[str, Any]:
        """What `--json` writes."""
        settings = {
            "height": self.height,
            "width": self.width,
            "repeat": self.repeat,
            "warmup": self.warmup,
            "threads": self.threads,
            "steps": self.steps,
        }
        errors = {ep: str(error) for ep, error in self.errors.items()}
        return {"machine": describe(), "settings": settings, "rows": self.rows, "errors": errors}

    def _row(self, job: Job, folder: Path) -> Row:
        is_component = job.component in self.package.manifest.components
        if is_component and job.ep != "cpu" and job.component not in self._references:
            self._references[job.component] = self._outputs(replace(job, ep="cpu", repeat=0), folder)
        outputs = folder / f"{job.ep}-{job.component}.npz"
        result = start(replace(job, outputs=str(outputs) if is_component else ""), folder)
        calls = result.pop("calls")
        row = {"package": job.package, "ep": job.ep, "component": job.component, **result, "flops": self._flops(calls)}
        if is_component and job.ep == "cpu":
            self._references[job.component] = _load(outputs)
        elif is_component:
            row["snr_db_against_cpu"], row["max_abs_against_cpu"] = self._compare(job, _load(outputs))
        return row

    def _outputs(self, job: Job, folder: Path) -> dict[str, np.ndarray]:
        file = folder / f"reference-{job.component}.npz"
        start(replace(job, outputs=str(file)), folder)
        return _load(file)

    def _compare(self, job: Job, outputs: dict[str, np.ndarray]) -> tuple[float, float]:
        """The worst SNR and the largest difference of a component's outputs. Errors: CheckFailed below MINIMUM_SNR_DB."""
        reference = self._references[job.component]
        snr = min(snr_db(reference[name], outputs[name]) for name in reference)
        if snr < MINIMUM_SNR_DB:
            raise CheckFailed(
                f"'{job.component}' on {job.ep} is {snr:.1f} dB from its result on the cpu, where {MINIMUM_SNR_DB:.0f} dB is the least: "
                "its figures would mean nothing"
            )
        return round(snr, 2), max(max_abs(reference[name], outputs[name]) for name in reference)

    def _flops(self, calls: dict[str, int]) -> int:
        """FLOP of one run: two per multiply-accumulate. 0 where a graph's work was not counted, or not at this size."""
        manifest = self.package.manifest
        macs = [manifest.components[component].macs * rows for component, rows in calls.items()]
        counted = (self.height, self.width) == (manifest.pipeline["height"], manifest.pipeline["width"]) and all(macs)
        return 2 * sum(macs) if counted else 0

    def _encoders(self) -> list[str]:
        """The text encoders that the package has of those that its prompts need; none where one is missing."""
        needed = [encoder["component"] for encoder in text_encoders(self.package.manifest.pipeline)]
        return needed if all(name in self.package.manifest.components for name in needed) else []

    def _work(self, job: Job) -> float:
        """A guess at a job's length, for the progress bar: in multiply-accumulates, or parameters where they were not counted."""
        entries = self.package.manifest.components
        names = {PROMPTS: self._encoders(), STEP: ["unet"], PIPELINE: list(entries)}.get(job.component, [job.component])
        runs = {PROMPTS: 2, STEP: 2, PIPELINE: 2 * job.steps}.get(job.component, 1) * (job.warmup + job.repeat + 1)
        start_up = 2e8  # a process that imports and loads, in what a small graph's multiply-accumulates take as long for
        return start_up + runs * sum(entries[name].macs or entries[name].parameters for name in names)


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def start(job: Job, folder: Path) -> dict[str, Any]:
    """Runs a job in a new process. Errors: those of the job, under their own class; CheckFailed where the process died."""
    job_file, result_file = folder / "job.json", folder / "result.json"
    write_job(job, job_file)
    result_file.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "runtime.measure", str(job_file), str(result_file)], capture_output=True, text=True, check=False
    )
    if not result_file.is_file():
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"the measurement of '{job.component}' on {job.ep} died with {how}: {last}")
    result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    if "error" in result:
        raise {1: CheckFailed, 2: InputError, 3: Unavailable}[result["exit_code"]](result["error"])
    return result


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal: what was asked for, what it took, and where each node really ran."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in rows:
        speed = f"{row['flops'] / row['median_ms'] / 1e6:.1f}" if row["flops"] else "-"
        against = decibels(row["snr_db_against_cpu"]) if "snr_db_against_cpu" in row else "-"
        where = ", ".join(f"{name.removesuffix('ExecutionProvider')} {nodes}" for name, nodes in row["assigned"].items())
        figures = (f"{row['load_ms']:.0f}", *(f"{row[key]:.2f}" for key in ("median_ms", "p90_ms", "p99_ms")), str(row["runs"]))
        lines.append((row["ep"], row["component"], *figures, speed, f"{row['peak_rss_mb']:.0f}", against, where))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<", "<", *[">"] * (len(COLUMNS) - 3), "<"]
    aligned = ["  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([aligned[0], "-" * max(map(len, aligned)), *aligned[1:]])


def _calibrate(threads: int, json_file: Path | None) -> None:
    """Measures the machine's convolutions and prints them, a line for each layer."""
    most = calibrate.ROUNDS * len(calibrate.LAYERS) * len(calibrate.ALGORITHMS)
    with tqdm(total=most, desc="convolutions", leave=False, disable=None) as bar:
        found = calibrate.calibrate(threads, step=bar.update)
    click.echo(calibrate.table(found["rows"]))
    if json_file:
        _write(json_file, found)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@command
@click.argument("package", required=False, type=click.Path(path_type=Path))
@click.option("--ep", "eps", default="cpu", help="Execution providers, with commas between them.")
@click.option("--steps", default=0, help="Also time whole pictures of that many steps.")
@click.option("--repeat", default=20, help="Timed runs of each component.")
@click.option("--warmup", default=3, help="Runs before those.")
@click.option("--threads", default=0, help="Threads of one operator; 0: one per core.")
@click.option("--height", type=int, help="Of the picture, in pixels; the package's own where it is not given.")
@click.option("--width", type=int, help="Likewise.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows here.")
@click.option("--calibrate", "of_machine", is_flag=True, help="Measure what convolutions cost on this machine, for export --costs.")
def main(
    package: Path | None,
    eps: str,
    steps: int,
    repeat: int,
    warmup: int,
    threads: int,
    height: int | None,
    width: int | None,
    json_file: Path | None,
    of_machine: bool,
) -> None:
    """Measures every component of PACKAGE, the prompt, a denoising step, and with --steps a whole picture. Without PACKAGE: the demo's."""
    if of_machine:
        if package is not None:
            raise InputError(f"--calibrate measures the machine and no package: leave out '{package}'")
        _calibrate(threads, json_file)
        return
    opened = Package.open(package or demo_package())
    asked = list(dict.fromkeys(part.strip() for part in eps.split(",") if part.strip()))
    if not asked:
        raise InputError(f"'{eps}' names no execution provider: try cpu")
    bench = Bench(opened, height, width, repeat, warmup, threads, steps)
    bench.run(asked)
    report = bench.report()
    if bench.rows:
        manifest, machine = opened.manifest, report["machine"]
        click.echo(f"{manifest.model}, {manifest.target}, {manifest.precision}, {bench.width} x {bench.height} pixels: {opened.path}")
        threaded = f"{threads} threads" if threads else "a thread on each"
        click.echo(f"{machine['cpu']}, {machine['cores']} cores, {threaded}, ONNX Runtime {machine['onnxruntime']}\n")
        click.echo(table(bench.rows))
        for row in bench.rows:
            if row["component"] == PIPELINE:
                parts = f"the prompt {row['prompt_ms']:.2f} ms, each step {row['step_ms']:.2f} ms, decoding {row['decoding_ms']:.2f} ms"
                click.echo(f"\nA picture in {steps} step{'s' * (steps > 1)} on {row['ep']}: {parts}.")
        if not all(row["flops"] for row in bench.rows):
            click.echo("\nGFLOP/s is missing where the package does not state the work, which it does for its own size only.")
    for ep, missing in bench.errors.items():
        if isinstance(missing, Unavailable) and ep in ACCELERATORS:
            click.echo(predicted(opened.manifest, ep))
    if json_file:
        _write(json_file, report)
    if errors := sorted(bench.errors.values(), key=lambda error: error.exit_code):
        raise type(errors[0])("; ".join(map(str, errors)))


if __name__ == "__main__":
    main()
