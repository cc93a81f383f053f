"""`python -m runtime.peers PACKAGE..`: packages against stock ONNX Runtime and OpenVINO on this machine, in one run, as ratios.

The peers get the portable graph, with the same inputs at batch 1 and the same number of threads; each measurement has a process of its
own, one after the other. Machines change their speed over minutes, so everybody has a turn in each of several rounds, every second one
backwards, and medians are taken over the rounds. A peer whose outputs are not those of stock ONNX Runtime is not timed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from runtime.bench import start
from runtime.cli import command
from runtime.compare import decibels, snr_db
from runtime.errors import CheckFailed, InputError, Unavailable
from runtime.inputs import example_inputs, size_of
from runtime.machine import describe, usable_cores
from runtime.manifest import Package
from runtime.measure import Job

COMPONENTS = ("unet", "vae_decoder")
STOCK = "ONNX Runtime"
HINTS = {"fp32": "f32", "bf16": "bf16"}  # our names of precisions, and OpenVINO's
LEAST_SNR_DB = {"fp32": 80.0, "bf16": 15.0}  # against stock ONNX Runtime (OpenVINO in bf16: 18.6): below it, something else was computed
SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "openvino_peer.py"
Row = dict[str, Any]


@dataclass
class Entrant:
    """Who is measured, `package` or OpenVINO, and what was found of it in each round."""

    who: str
    precision: str
    package: Package | None = None
    rounds: list[Row] = field(default_factory=list)
    snr_db: float | None = None

    def row(self, component: str) -> Row:
        """The medians over the rounds, and those of each (`rounds_ms`)."""
        times, loads = ([figures[key] for figures in self.rounds] for key in ("median_ms", "load_ms"))
        if self.package:
            own = {"peak_rss_mb": max(figures["peak_rss_mb"] for figures in self.rounds)}
        else:
            own = {"version": self.rounds[0]["version"]}
        return {
            "component": component,
            "who": self.who,
            "precision": self.precision,
            "median_ms": statistics.median(times),
            "rounds_ms": times,
            "load_ms": statistics.median(loads),
            "runs": sum(figures["runs"] for figures in self.rounds),
            **own,
            "snr_db": self.snr_db,
        }


@dataclass(frozen=True)
class Contest:
    """What every entrant gets: the baseline (a portable package), the picture's size, repetitions in each of the rounds and threads, and
    OpenVINO's Python."""

    baseline: Package
    height: int
    width: int
    repeat: int
    rounds: int
    threads: int
    openvino: Path

    def run(self, packages: Sequence[Package], step: Callable[[str], object] = str) -> list[Row]:
        """Measures every component by everybody: [{component, who, precision, median_ms, load_ms, snr_db, ratio (to stock's median)}].

        `step` is told what was just measured and what is next: all of it takes minutes, and the last of it may fail.
        Errors: CheckFailed where outputs differ; Unavailable where OpenVINO does not run.
        """
        rows: list[Row] = []
        for component in (name for name in COMPONENTS if name in self.baseline.manifest.components):
            with TemporaryDirectory(prefix="handheld-peers-") as folder:
                rows += self._component(component, packages, Path(folder), step)
        return rows

    def _component(self, component: str, packages: Sequence[Package], folder: Path, step: Callable[[str], object]) -> list[Row]:
        entrants = [
            Entrant(STOCK, "fp32", self.baseline),
            *(Entrant("OpenVINO", precision) for precision in HINTS),
            *(Entrant(package.path.name, package.manifest.precision, package) for package in packages),
        ]
        reference: dict[str, np.ndarray] = {}
        before = component
        for number in range(self.rounds):
            for entrant in entrants if number % 2 == 0 else entrants[::-1]:
                step(f"{before}; {entrant.who} {entrant.precision}")
                if entrant.package is None:
                    outputs, figures = self._openvino(component, HINTS[entrant.precision], folder)
                else:
                    outputs, figures = self._ours(entrant.package, component, folder)
                if reference:
                    self._require_same(component, entrant, reference, outputs)
                else:
                    reference = outputs  # the first of all is stock ONNX Runtime's
                entrant.rounds.append(figures)
                before = f"{component}: {figures['median_ms']:.0f} ms"
        rows = [entrant.row(component) for entrant in entrants]
        return [row | {"ratio": round(row["median_ms"] / rows[0]["median_ms"], 4)} for row in rows]

    @staticmethod
    def _require_same(component: str, entrant: Entrant, reference: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        if entrant.who == STOCK:
            return
        snr = min(snr_db(reference[name], outputs[name]) for name in reference)
        if snr < LEAST_SNR_DB[entrant.precision]:
            raise CheckFailed(f"'{component}' in {entrant.who} ({entrant.precision}) is {snr:.1f} dB from {STOCK}'s result, where "
                              f"{LEAST_SNR_DB[entrant.precision]:.0f} dB is the least: its time would mean nothing")  # fmt: skip
        entrant.snr_db = round(snr, 2)

    def _ours(self, package: Package, component: str, folder: Path) -> tuple[dict[str, np.ndarray], Row]:
        outputs = folder / "ours.npz"
        job = Job(str(package.path), "cpu", component, self.height, self.width, 0, self.repeat, 1, self.threads, str(outputs))
        figures = start(job, folder)
        return _load(outputs), {key: figures[key] for key in ("median_ms", "load_ms", "runs", "peak_rss_mb")}

    def _openvino(self, component: str, hint: str, folder: Path) -> tuple[dict[str, np.ndarray], Row]:
        inputs, outputs = folder / "inputs.npz", folder / "openvino.npz"
        np.savez(inputs, **example_inputs(self.baseline, component, self.height, self.width))  # type: ignore[arg-type]
        arguments = [self.baseline.file(component), inputs, outputs, hint, self.threads or usable_cores(), self.repeat]
        try:
            done = subprocess.run([self.openvino, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=True)
        except OSError as error:
            raise Unavailable(f"'{self.openvino}' cannot be run: 'make peers' makes the environment that it belongs to") from error
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise Unavailable(f"OpenVINO does not run '{component}': {last}") from error
        figures = json.loads(done.stdout.splitlines()[-1])
        return _load(outputs), {key: figures[key] for key in ("median_ms", "load_ms", "runs", "version")}


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal: ms, and the time as a multiple of each peer's."""
    lines = [f"{'component':14}{'who':24}{'':6}{'ms':>10}{'/ ORT':>9}{'/ OV fp32':>11}{'/ OV bf16':>11}{'SNR':>11}{'load ms':>10}"]
    for row in rows:
        peers = {
            each["precision"]: each["median_ms"] for each in rows if (each["component"], each["who"]) == (row["component"], "OpenVINO")
        }
        ratios = "".join(f"{row['median_ms'] / peers[precision]:11.2f}" for precision in HINTS)
        snr = "-" if row["snr_db"] is None else decibels(row["snr_db"])
        lines.append(f"{row['component']:14}{row['who']:24}{row['precision']:6}{row['median_ms']:10.1f}{row['ratio']:9.2f}{ratios}{snr:>11}"
                     f"{row['load_ms']:10.0f}")  # fmt: skip
    return "\n".join(lines)


@command
@click.argument("packages", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--baseline", required=True, type=click.Path(path_type=Path), help="The portable package of the same checkpoint.")
@click.option("--openvino", required=True, type=click.Path(path_type=Path), help="Python of an environment with openvino.")
@click.option("--height", type=int, help="Of the picture, in pixels; the package's own where it is not given.")
@click.option("--width", type=int, help="Likewise.")
@click.option("--repeat", default=3, type=click.IntRange(1), show_default=True, help="Timed runs of each in a round.")
@click.option("--rounds", default=3, type=click.IntRange(1), show_default=True, help="How often everybody has a turn.")
@click.option("--threads", default=0, help="Threads of everybody; 0: one per core.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows here.")
def main(packages: tuple[Path, ...], baseline: Path, openvino: Path, height: int | None, width: int | None, repeat: int, rounds: int,
         threads: int, json_file: Path | None) -> None:  # fmt: skip
    """Measures the U-Net and the decoder of PACKAGES against stock ONNX Runtime and OpenVINO."""
    stock, opened = Package.open(baseline), [Package.open(package) for package in packages]
    if stock.manifest.target != "portable":
        raise InputError(f"'{baseline}' is made for {stock.manifest.target}: peers run the portable graph")
    contest = Contest(stock, *size_of(stock, height, width), repeat, rounds, threads, openvino)
    with tqdm(total=(3 + len(opened)) * len(COMPONENTS) * rounds, desc="peers", unit="run", leave=False, disable=None) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        rows = contest.run(opened, step)
    click.echo(table(rows))
    if json_file:
        settings = {key: getattr(contest, key) for key in ("height", "width", "repeat", "rounds")} | {"threads": threads or usable_cores()}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"machine": describe(), "settings": settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
