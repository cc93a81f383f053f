"""`python -m runtime.generate`: a package and a prompt to a picture, with its settings inside."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
from tqdm import tqdm

from runtime import pictures
from runtime.cli import command
from runtime.errors import InputError
from runtime.manifest import NAME, Package, sha256_of
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.inpaint import inpaint
from runtime.pipelines.settings import Resolved, Result, Settings
from runtime.pipelines.text_to_image import text_to_image
from runtime.providers import provider
from runtime.session import Sessions

# what AUTOMATIC1111's web UI calls our schedulers: tools that read the `parameters` of a PNG know these names
SAMPLERS = {"ddim": "DDIM", "pndm": "PLMS", "euler": "Euler", "euler_ancestral": "Euler a", "dpmpp_2m": "DPM++ 2M", "lcm": "LCM"}


def texts(package: Package, settings: Resolved, index: int) -> dict[str, str]:
    """The text chunks of picture `index`: each setting under its name, and all in one line as AUTOMATIC1111's web UI writes them."""
    prompt, seed = settings.prompts[index], settings.seeds[index]
    model_hash = sha256_of(package.path / NAME)
    versions = {"handheld-diffusion": importlib.metadata.version("handheld-diffusion"), "onnxruntime": ort.__version__}
    line = {
        "Steps": settings.steps,
        "Sampler": SAMPLERS.get(settings.scheduler, settings.scheduler),
        "CFG scale": f"{settings.guidance:g}",
        "Seed": seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model hash": model_hash[:10],
        "Model": package.manifest.model,
        **({"Denoising strength": f"{settings.strength:g}"} if settings.strength < 1 else {}),
        "Version": f"handheld-diffusion {versions['handheld-diffusion']}",
    }
    negative = f"\nNegative prompt: {settings.negative}" if settings.negative else ""
    return {
        "parameters": f"{prompt}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in line.items()),
        "prompt": prompt,
        "negative_prompt": settings.negative,
        "seed": str(seed),
        "steps": str(settings.steps),
        "guidance": f"{settings.guidance:g}",
        "scheduler": settings.scheduler,
        "strength": f"{settings.strength:g}",
        "model": package.manifest.model,
        "precision": package.manifest.precision,
        "package_sha256": model_hash,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def numbered(out: Path, count: int) -> list[Path]:
    """`F.png` for one picture, `F-0.png`, `F-1.png`, ... for several. Errors: InputError where `out` can't be a PNG file."""
    if out.suffix.lower() != ".png" or out.is_dir():
        raise InputError(f"'{out}' is no name for a picture: give one that ends in .png")
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(count)]


def _summary(result: Result, sessions: Sessions) -> str:
    steps = result.timings["unet"]
    loading = sum(sessions.load_seconds.values())
    running = sum(sum(seconds) for seconds in result.timings.values())
    return f"{running:.1f} s to run ({len(steps)} steps of {np.median(steps):.3f} s), {loading:.1f} s to load"


@command
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--negative", default="", help="What the picture should not show.")
@click.option("--seed", default=0, help="Of the first picture; the others count on from it.")
@click.option("--steps", type=int, help="Denoising steps.  [default: the package's]")
@click.option("--guidance", type=float, help="How strongly the prompt steers, 1: not beyond its own.  [default: the package's]")
@click.option("--scheduler", help=f"{', '.join(SAMPLERS)}.  [default: the package's]")
@click.option("--image", "image_file", type=click.Path(path_type=Path), help="A picture to start from.")
@click.option("--mask", "mask_file", type=click.Path(path_type=Path), help="What of the image is made anew (white) and kept (black).")
@click.option("--strength", type=float, help="How much of the image is changed, up to 1.  [default: 0.8, with a mask 1]")
@click.option("--height", type=int, help="In pixels.  [default: the image's, else the package's]")
@click.option("--width", type=int, help="In pixels.  [default: the image's, else the package's]")
@click.option("--count", default=1, help="How many pictures.")
@click.option("--ep", default="cpu", help="The execution provider.")
@click.option("--threads", default=0, help="Threads of one operator, 0: one per core.")
@click.option("--low-memory", is_flag=True, help="Keep one component in memory at a time.")
@click.option("--no-safety-checker", is_flag=True, help="Don't ask the package's safety checker.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The PNG file; several become F-0.png, F-1.png, ...")
def main(
    package: Path, prompt: str, negative: str, seed: int, steps: int | None, guidance: float | None, scheduler: str | None,
    image_file: Path | None, mask_file: Path | None, strength: float | None, height: int | None, width: int | None,
    count: int, ep: str, threads: int, low_memory: bool, no_safety_checker: bool, out: Path,
) -> None:
    """Makes a picture of PROMPT with PACKAGE, and writes it as a PNG that tells how it was made."""
    if mask_file is not None and image_file is None:
        raise InputError("--mask needs --image: the picture that it masks")
    files = numbered(out, count)
    settings = Settings.one_prompt(
        prompt, seed, count, negative=negative, steps=steps, guidance=guidance, scheduler=scheduler, height=height, width=width,
        image=None if image_file is None else pictures.read(image_file), strength=strength,
        mask=None if mask_file is None else pictures.read(mask_file, "L"), safety_checker=not no_safety_checker,
    )
    task = text_to_image if image_file is None else image_to_image if mask_file is None else inpaint

    def progress(timesteps: np.ndarray) -> Iterable[float]:
        return tqdm(timesteps, desc="denoising", unit="step")

    opened = Package.open(package)
    with Sessions(opened, provider(ep), threads, low_memory) as sessions:
        result = task(sessions, settings, progress=progress)
        for warning in result.warnings:
            click.echo(f"warning: {warning}", err=True)
        for index, file in enumerate(files):
            pictures.write_png(file, result.images[index], texts(opened, result.settings, index))
            click.echo(file)
        click.echo(_summary(result, sessions))


if __name__ == "__main__":
    main()
