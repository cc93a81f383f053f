"""`python -m runtime.score`: how many of 64 fixed prompts a package of the embedded model draws right, judged from pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from runtime import pictures
from runtime.cli import command
from runtime.errors import InputError
from runtime.manifest import Package
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image
from runtime.providers import Provider, provider
from runtime.scenes import Scene, Verdict, judge, score_scenes
from runtime.session import Sessions

MODEL = "tiny"
STEPS = 20
GUIDANCE = 4.0
BATCH = 16  # pictures at once, where a package takes any number of them
COLUMNS = 8  # of the contact sheet


@dataclass(frozen=True, eq=False)
class Judged:
    """One picture, uint8 [H, W, 3], and whether it shows its scene."""

    scene: Scene
    picture: np.ndarray
    verdict: Verdict


def judged(package: Package, ep: Provider, threads: int = 0, steps: int = STEPS) -> list[Judged]:
    """Draws and judges the 64 scenes: DDIM, seed = number of the scene, as `examples/train_tiny.py` does with torch.

    Errors: InputError where the package is no package of the embedded model (another one was never taught these scenes), and those of
    `text_to_image`.
    """
    if package.manifest.model != MODEL:
        raise InputError(f"the score is for packages of the embedded model, '{MODEL}': it means nothing for '{package.manifest.model}'")
    wanted = score_scenes()
    done: list[Judged] = []
    with Sessions(package, ep, threads) as sessions, tqdm(total=len(wanted), desc="score", unit="picture") as bar:
        batch = _batch(sessions)
        for start in range(0, len(wanted), batch):
            some = wanted[start : start + batch]
            captions = tuple(scene.caption for scene in some)
            seeds = tuple(range(start, start + len(some)))
            result = text_to_image(sessions, Settings(captions, seeds, steps=steps, guidance=GUIDANCE, scheduler="ddim"))
            done += [Judged(scene, image, judge(image, scene)) for scene, image in zip(some, result.images, strict=True)]
            bar.update(len(some))
    return done


def _batch(sessions: Sessions) -> int:
    """How many pictures to draw at once: of a static graph no more than one run takes, so that the bar moves in an emulator too. A picture
    is two rows: without the prompt and with it."""
    rows = sessions.batch("unet", 2 * BATCH)
    return max(1, rows // 2) if isinstance(rows, int) else BATCH


def share(results: Sequence[Judged]) -> float:
    """How many of the pictures are right, 0 to 1."""
    return sum(result.verdict.right for result in results) / len(results)


def score(package: Package, ep: str = "cpu", threads: int = 0) -> float:
    """Share of the 64 fixed prompts whose picture shows what they name, 0 to 1. Errors: those of `judged`."""
    return share(judged(package, provider(ep), threads))


def sheet(results: Sequence[Judged]) -> np.ndarray:
    """All pictures in rows of eight, twice as large, wrong ones framed in magenta: uint8 [H, W, 3]."""
    tiles = []
    for result in results:
        large = Image.fromarray(result.picture).resize([2 * side for side in result.picture.shape[1::-1]], Image.Resampling.NEAREST)
        tile = np.array(large)
        if not result.verdict.right:
            tile[:3] = tile[-3:] = tile[:, :3] = tile[:, -3:] = (255, 0, 255)
        tiles.append(tile)
    return np.concatenate([np.concatenate(tiles[first : first + COLUMNS], axis=1) for first in range(0, len(tiles), COLUMNS)])


@command
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--ep", default="cpu", help="The execution provider.")
@click.option("--steps", default=STEPS, help="Denoising steps. Compare scores of one number of them.")
@click.option("--threads", default=0, help="Threads of one operator, 0: one per core.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write {score, prompts, steps, wrong} there.")
@click.option("--sheet", "sheet_file", type=click.Path(path_type=Path), help="Write all pictures there, as one PNG.")
def main(package: Path, ep: str, steps: int, threads: int, json_file: Path | None, sheet_file: Path | None) -> None:
    """Shows how many of 64 fixed prompts PACKAGE draws right, and what is wrong with the others."""
    results = judged(Package.open(package), provider(ep), threads, steps)
    wrong = [{"prompt": result.scene.caption, "reason": result.verdict.reason} for result in results if not result.verdict.right]
    for each in wrong:
        click.echo(f"{each['prompt']}: {each['reason']}")
    click.echo(f"{len(results) - len(wrong)} of {len(results)} prompts are right: score {share(results):.3f} in {steps} steps")
    if json_file is not None:
        found = {"score": share(results), "prompts": len(results), "steps": steps, "wrong": wrong}
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if sheet_file is not None:
        pictures.write_png(sheet_file, sheet(results), {})


if __name__ == "__main__":
    main()
