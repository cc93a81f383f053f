"""The report of a package as one HTML page that asks for nothing from outside: pictures, charts and styles are inside."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from runtime import compare
from runtime.errors import InputError
from runtime.manifest import Manifest, Package, inside
from runtime.measure import PIPELINE, PROMPTS, STEP
from runtime.report import charts
from runtime.report.numbers import count, decibels, megabytes, plain, quantity
from runtime.report.placement import maps

FOLDER = Path(__file__).parent
PARITY_FOLDER = "parity"  # of a package: what torch and ONNX Runtime drew from the same latents
LARGEST_AMPLIFICATION = 64


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two pictures of the same latents, uint8 [H, W, 3], and their difference times `factor`."""

    torch: np.ndarray
    onnx: np.ndarray
    difference: np.ndarray
    factor: int
    largest: int
    differing: float  # share of the pixels in which they differ

    @classmethod
    def of(cls, torch: np.ndarray, onnx: np.ndarray) -> Comparison:
        """`factor` is the largest power of two, up to LARGEST_AMPLIFICATION, that keeps the difference below white. Errors: InputError."""
        if torch.shape != onnx.shape:
            raise InputError(f"the pictures to compare have different sizes: {torch.shape[1::-1]} and {onnx.shape[1::-1]}")
        difference = np.abs(torch.astype(np.int16) - onnx)
        largest = int(difference.max())
        factor = min(LARGEST_AMPLIFICATION, 2 ** int(math.log2(255 / largest))) if largest else 1
        amplified = (difference * factor).astype(np.uint8)
        return cls(torch, onnx, amplified, factor, largest, float((difference.max(axis=-1) > 0).mean()))


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture that was made for the report, uint8 [H, W, 3], and what it was made from."""

    picture: np.ndarray
    prompt: str
    seed: int
    steps: int


@dataclass(frozen=True, eq=False)
class Report:
    """All that the page shows. What is None was not checked or not measured, and the page says so."""

    package: Package
    comparison: Comparison | None = None
    bench: dict[str, Any] | None = None
    score: dict[str, Any] | None = None
    sample: Sample | None = None
    ablation: dict[str, Any] | None = None


def read_comparison(folder: Path) -> Comparison | None:
    """The two pictures that the trajectory check left; None where there are none. Errors: InputError where one is no picture."""
    files = [folder / f"{name}.png" for name in ("torch", "onnx")]
    if not all(file.is_file() for file in files):
        return None
    pictures = []
    for file in files:
        try:
            with Image.open(file) as image:
                pictures.append(np.asarray(image.convert("RGB")))
        except OSError as error:
            raise InputError(f"'{file}' is not a picture: {error}") from error
    return Comparison.of(*pictures)


def render(report: Report) -> str:
    """The page. Errors: InputError where the benchmark has rows that are not those of `runtime.bench`."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER, encoding="utf-8"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"quantity": quantity, "count": count, "megabytes": megabytes, "decibels": decibels, "plain": plain, "png": png}
    manifest = report.package.manifest
    try:
        rows = _rows(report.bench)
        return environment.get_template("page.html").render(
            manifest=manifest,
            css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),  # ours, no user's
            comparison=report.comparison,
            sample=report.sample,
            score=report.score,
            bench=report.bench,
            rows=rows,
            providers=sorted({name for row in rows for name in row["assigned"]}),
            step=next((row for row in rows if row["component"] == STEP), None),
            size=sum(entry.bytes for entry in manifest.files.values()),
            worst=min((e.parity["snr_db"] for e in manifest.components.values() if e.parity), default=None),
            unchecked=[name for name, entry in manifest.components.items() if not entry.parity],
            passes=pass_table(manifest),
            remarks=remarks(manifest),
            plan_maps=maps(manifest.components),
            limits=(manifest.trajectory_parity or {}).get("limits", {}),
            snr_charts=_snr_charts(manifest),
            latency_charts=_latency_charts(rows),
            ablation=report.ablation,
            ablation_charts=_ablation_charts(report.ablation),
        )
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"the manifest, the benchmark or the score lacks what the report needs ({what}): make it again") from error


def remarks(manifest: Manifest) -> list[dict[str, Any]]:
    """What passes said of single places: {name, component, notes (what was chosen there), refused (why they were left alone)}."""
    told = ((step, component) for component, entry in manifest.components.items() for step in entry.passes)
    rows = ({"name": step["name"], "component": component, "notes": step.get("notes", ()), "refused": step.get("refused", ())}
            for step, component in told)
    return [row for row in rows if row["notes"] or row["refused"]]


def pass_table(manifest: Manifest) -> list[dict[str, Any]]:
    """One row per pass, in order: {name, applied: {component: times, None where it was not run}, total, seconds}."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for component, entry in manifest.components.items():
        seen: dict[str, int] = {}
        for step in entry.passes:  # a pass may stand in a pipeline twice: its second time is a row of its own
            name = step["name"]
            seen[name] = seen.get(name, 0) + 1
            row = rows.setdefault((name, seen[name]), {"name": name, "applied": dict.fromkeys(manifest.components), "seconds": 0.0})
            row["applied"][component] = step["applied"]
            row["seconds"] += step["seconds"]
    for row in rows.values():
        row["total"] = sum(times or 0 for times in row["applied"].values())
    return list(rows.values())


def png(picture: np.ndarray) -> str:
    """uint8 [H, W, 3] as a data URI."""
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode("ascii")


def parity_folder(package: Package) -> Path:
    """Where a package keeps the pictures of its trajectory check."""
    return inside(package.path, PARITY_FOLDER)


def _rows(bench: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [] if bench is None else list(bench["rows"])


def _snr_charts(manifest: Manifest) -> list[Markup]:
    """The same chart for a wide page and a narrow one; the style sheet shows one of them."""
    trajectory = manifest.trajectory_parity
    if not trajectory or not trajectory.get("snr_db_per_step"):
        return []
    values = [min(value, compare.EQUAL_DB) for value in trajectory["snr_db_per_step"]]
    limit = trajectory.get("limits", {}).get("step_snr_db")
    return [Markup(charts.snr_over_steps(values, limit, width)) for width in (charts.WIDE, charts.NARROW)]


def _latency_charts(rows: Iterable[dict[str, Any]]) -> list[Markup]:
    """Components and the step; a whole picture would make all of them small."""
    shown = [row for row in rows if row["component"] != PIPELINE]
    if not shown:
        return []
    names = list(dict.fromkeys(row["component"] for row in shown))
    eps = list(dict.fromkeys(row["ep"] for row in shown))
    figures = {(row["ep"], row["component"]): (row["median_ms"], row["p90_ms"]) for row in shown}
    series: charts.Series = {ep: [figures.get((ep, name)) for name in names] for ep in eps}
    labels = [{PROMPTS: "the prompt", STEP: "one step"}.get(name, name) for name in names]
    return [Markup(charts.latency(labels, series, width)) for width in (charts.WIDE, charts.NARROW)]


def _ablation_charts(ablation: dict[str, Any] | None) -> dict[str, list[Markup]]:
    """Per component the same chart for a wide page and a narrow one: a component's rows are of one size, two components' are not."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in [] if ablation is None else ablation["rows"]:
        rows.setdefault(row["component"], []).append(row)
    drawn = {}
    for component, each in rows.items():
        names, series = [row["row"] for row in each], {component: [(row["median_ms"], row["p90_ms"]) for row in each]}
        widths = (charts.WIDE, charts.NARROW)
        drawn[component] = [Markup(charts.latency(names, series, width, f"ablation-{component}")) for width in widths]
    return drawn
