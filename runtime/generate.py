"""`python -m runtime.generate`: a package and a prompt to a picture, with its settings inside."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from runtime import pictures
from runtime.cli import command
from runtime.errors import InputError
from runtime.manifest import Package
from runtime.metadata import SAMPLERS, texts
from runtime.pipelines.base_and_refiner import HANDOVER, base_and_refiner
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.inpaint import inpaint
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.size_conditioning import SizeConditioning
from runtime.pipelines.text_to_image import text_to_image
from runtime.providers import provider
from runtime.session import Sessions


class Numbers(click.ParamType):
    """Two whole numbers of an option, such as 1024x768."""

    def __init__(self, name: str, between: str, example: str) -> None:
        self.name, self.between, self.example = name, between, example

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        first, _, second = value.partition(self.between)
        try:
            return int(first), int(second)
        except ValueError:
            self.fail(f"'{value}' is not {self.name}: write it like {self.example}", param, ctx)


SIZE, CORNER = Numbers("HxW", "x", "1024x768"), Numbers("TOP,LEFT", ",", "0,128")


def numbered(out: Path, count: int) -> list[Path]:
    """`F.png` for one picture, `F-0.png`, `F-1.png`, ... for several. Errors: InputError where `out` can't be a PNG file."""
    if out.suffix.lower() != ".png" or out.is_dir():
        raise InputError(f"'{out}' is no name for a picture: give one that ends in .png")
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(count)]


def _summary(result: Result, load_seconds: list[dict[str, float]]) -> str:
    """The three parts of a picture apart, as latency is compared; then all of it, and what came before."""
    made = len(result.timings["unet"])
    parts = (
        f"prompt {result.prompt_seconds:.3f} s, {made} step{'s' * (made > 1)} of {result.step_seconds:.3f} s, "
        f"decoding {result.decoding_seconds:.3f} s"
    )
    running = sum(sum(seconds) for seconds in result.timings.values())
    return f"{running:.1f} s to run ({parts}), {sum(sum(each.values()) for each in load_seconds):.1f} s to load"


@command
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--negative", help="What the picture should not show.")
@click.option("--seed", default=0, help="Of the first picture; the others count on from it.")
@click.option("--steps", type=int, help="Denoising steps.  [default: the package's]")
@click.option("--guidance", type=float, help="How strongly the prompt steers, 1: not beyond its own.  [default: the package's]")
@click.option("--guidance-rescale", type=float, help="How much of guidance's contrast is taken back, 0 to 1.  [default: the package's]")
@click.option("--scheduler", help=f"{', '.join(SAMPLERS)}.  [default: the package's]")
@click.option("--image", "image_file", type=click.Path(path_type=Path), help="A picture to start from.")
@click.option("--mask", "mask_file", type=click.Path(path_type=Path), help="What of the image is made anew (white) and kept (black).")
@click.option("--strength", type=float, help="How much of the image is changed, up to 1.  [default: the package's, with a mask 1]")
@click.option("--height", type=int, help="In pixels.  [default: the image's, else the package's]")
@click.option("--width", type=int, help="In pixels.  [default: the image's, else the package's]")
@click.option("--refiner", "refiner_path", type=click.Path(path_type=Path), help="A package of SDXL's refiner, which makes the last steps.")
@click.option("--handover", type=float, help=f"Share of the noise that is the base's, the rest the refiner's.  [default: {HANDOVER}]")
@click.option("--original-size", type=SIZE, help="SDXL: size of the picture before it was made smaller.  [default: the picture's]")
@click.option("--crop", type=CORNER, help="SDXL: the corner where it was cut out.  [default: 0,0]")
@click.option("--target-size", type=SIZE, help="SDXL's base: its size after that.  [default: the picture's]")
@click.option("--aesthetic-score", type=float, help="SDXL's refiner: 1 to 10.  [default: the package's]")
@click.option("--negative-original-size", type=SIZE, help="The original size that guidance leads away from.  [default: the other]")
@click.option("--negative-crop", type=CORNER, help="The corner likewise.  [default: 0,0, without other negatives the base's other]")
@click.option("--negative-target-size", type=SIZE, help="The target size likewise.  [default: the other]")
@click.option("--negative-aesthetic-score", type=float, help="The score likewise.  [default: the package's]")
@click.option("--count", default=1, help="How many pictures.")
@click.option("--ep", default="cpu", help="The execution provider.")
@click.option("--threads", default=0, help="Threads of one operator, 0: one per core.")
@click.option("--low-memory", is_flag=True, help="Keep one component in memory at a time.")
@click.option("--no-safety-checker", is_flag=True, help="Don't ask the package's safety checker.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The PNG file; several become F-0.png, F-1.png, ...")
def main(
    package: Path, prompt: str, negative: str | None, seed: int, steps: int | None, guidance: float | None,
    guidance_rescale: float | None, scheduler: str | None, image_file: Path | None, mask_file: Path | None, strength: float | None,
    height: int | None, width: int | None, refiner_path: Path | None, handover: float | None,
    original_size: tuple[int, int] | None, crop: tuple[int, int] | None, target_size: tuple[int, int] | None,
    aesthetic_score: float | None, negative_original_size: tuple[int, int] | None, negative_crop: tuple[int, int] | None,
    negative_target_size: tuple[int, int] | None, negative_aesthetic_score: float | None,
    count: int, ep: str, threads: int, low_memory: bool, no_safety_checker: bool, out: Path,
) -> None:
    """Makes a picture of PROMPT with PACKAGE, and writes it as a PNG that tells how it was made."""
    if mask_file is not None and image_file is None:
        raise InputError("--mask needs --image: the picture that it masks")
    if handover is not None and refiner_path is None:
        raise InputError("--handover needs --refiner: the package to hand over to")
    files = numbered(out, count)
    sizes = SizeConditioning(
        original_size, crop, target_size, aesthetic_score, negative_original_size, negative_crop, negative_target_size,
        negative_aesthetic_score,
    )
    settings = Settings.one_prompt(
        prompt, seed, count, negative=negative, steps=steps, guidance=guidance, guidance_rescale=guidance_rescale, scheduler=scheduler,
        height=height, width=width, image=None if image_file is None else pictures.read(image_file), strength=strength, sizes=sizes,
        mask=None if mask_file is None else pictures.read(mask_file, "L"), safety_checker=not no_safety_checker,
    )
    task = text_to_image if image_file is None else image_to_image if mask_file is None else inpaint

    def progress(timesteps: np.ndarray) -> Iterable[float]:
        return tqdm(timesteps, desc="denoising", unit="step")

    opened, chosen = Package.open(package), provider(ep)
    refiner = None if refiner_path is None else Package.open(refiner_path)
    share = HANDOVER if handover is None else handover
    with ExitStack() as stack:
        sessions = stack.enter_context(Sessions(opened, chosen, threads, low_memory))
        load_seconds = [sessions.load_seconds]
        if refiner is None:
            result = task(sessions, settings, progress=progress)
        else:
            refining = stack.enter_context(Sessions(refiner, chosen, threads, low_memory))
            load_seconds.append(refining.load_seconds)
            result = base_and_refiner(sessions, refining, settings, share, progress=progress)
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)
    for index, file in enumerate(files):
        pictures.write_png(file, result.images[index], texts(opened, result, index, refiner, share))
        click.echo(file)
    if chosen.times_nothing:
        click.echo("computed by an emulator of the NPU, whose time says nothing of a phone's")
    else:
        click.echo(_summary(result, load_seconds))


if __name__ == "__main__":
    main()
