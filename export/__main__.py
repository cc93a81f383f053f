"""python -m export MODEL OUT: parse, call, print."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.cli import command
from runtime.errors import InputError


@command
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--weights", help="hub, a PATH, or random[:SEED].  [default: the model's own]")
@click.option("--target", default="portable", help="portable, cpu, cuda, nnapi, coreml, qnn or webgpu.")
@click.option("--precision", default="fp32")
@click.option("--height", type=int, help="Pixels. With it, --width or --batch the package is static, unless --dynamic.")
@click.option("--width", type=int)
@click.option("--batch", type=int, help="Pictures per run of a static package.  [default: 1]")
@click.option("--dynamic", is_flag=True, help="Keep batch, height, width and tokens free.")
@click.option("--lora", multiple=True, metavar="FILE:SCALE")
@click.option("--controlnet", metavar="ID")
@click.option("--check", type=click.Choice(["full", "quick", "none"]), help="Parity with torch.  [default: by size]")
@click.option("--force", is_flag=True, help="Replace the package at OUT.")
@click.option("--allow-pickle", is_flag=True, help="Read .ckpt and .bin files, which can hold code; only tensors are taken from them.")
def main(model: str, out: Path, weights: str | None, target: str, precision: str, height: int | None, width: int | None, batch: int | None,
         dynamic: bool, lora: tuple[str, ...], controlnet: str | None, check: str | None, force: bool, allow_pickle: bool) -> None:
    """Exports MODEL (an alias, a hub id, a folder, a file) to a checked package at OUT."""
    if lora or controlnet:
        raise InputError(f"{'--lora' if lora else '--controlnet'} is not there yet: this version exports a checkpoint as it is")
    from export.run import Request, export  # torch is slow to import, and --help needs none of it

    free = dynamic or (height is None and width is None and batch is None)
    request = Request(model, out, weights, target, precision, height, width, 1 if batch is None else batch, free,
                      check, force, allow_pickle)
    made = export(request, click.echo)
    for name, component in made.manifest.components.items():
        found = component.parity
        result = f"SNR {found['snr_db']:.1f} dB, largest difference {found['max_abs']:.2g}" if found else "not checked"
        click.echo(f"  {name:15} {component.parameters / 1e6:8.1f} M  {result}")
    if (walked := made.manifest.trajectory_parity) is not None:
        click.echo(f"  {walked['steps']} steps with guidance {walked['guidance']:g}: SNR {min(walked['snr_db_per_step']):.1f} dB at "
                   f"the worst step, pixels within {walked['picture_max_diff']}/255, "
                   f"prompt heard {walked['prompt_sensitivity']:.4f} times as loud")
    click.echo(f"{made.path} is ready")


if __name__ == "__main__":
    main()
