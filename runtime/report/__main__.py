"""`python -m runtime.report`: the page of a package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from runtime.cli import command
from runtime.errors import InputError, Unavailable
from runtime.manifest import Package
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image


def read_json(file: Path) -> dict[str, Any]:
    """An object of a JSON file. Errors: InputError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{file}' can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"'{file}' holds no JSON object: it is not one of this project's files")
    return content


@command
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("report.html"), help="The page.")
@click.option("--bench", type=click.Path(path_type=Path), help="Figures that 'python -m runtime.bench --json' wrote.")
@click.option("--score", type=click.Path(path_type=Path), help="What 'python -m runtime.score --json' wrote.")
@click.option("--ablation", type=click.Path(path_type=Path), help="Rows that 'python -m export.ablation --json' wrote.")
@click.option("--parity", type=click.Path(path_type=Path), help="Folder with torch.png and onnx.png, where it is not the package's own.")
@click.option("--prompt", help="Make a picture of this prompt for the page.")
@click.option("--seed", default=0, help="Seed of that picture.")
def main(
    package: Path,
    out: Path,
    bench: Path | None,
    score: Path | None,
    ablation: Path | None,
    parity: Path | None,
    prompt: str | None,
    seed: int,
) -> None:
    """Writes all that is known of PACKAGE into one HTML file. What was not checked or measured is said to be so."""
    try:
        from runtime.report import page
    except ModuleNotFoundError as error:
        raise Unavailable(f"the report needs {error.name}: pip install 'handheld-diffusion[report]'") from error
    opened = Package.open(package)
    comparison = page.read_comparison(parity or page.parity_folder(opened))
    if parity is not None and comparison is None:
        raise InputError(f"'{parity}' has no torch.png and onnx.png")
    figures = read_json(bench) if bench else None
    points = read_json(score) if score else None
    sample = None
    if prompt is not None:
        result = text_to_image(opened, Settings.one_prompt(prompt, seed))
        sample = page.Sample(result.images[0], prompt, seed, result.settings.steps)
    html = page.render(page.Report(opened, comparison, figures, points, sample, read_json(ablation) if ablation else None))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html, encoding="utf-8")
    except OSError as error:
        raise InputError(f"the report can't be written to '{out}': {error.strerror}") from error
    click.echo(f"{out}: {len(html) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
