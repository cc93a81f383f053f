"""python -m export MODEL OUT: parse, call, print."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.cli import command
from runtime.errors import InputError
from runtime.snapdragon import DEFAULT, SOCS


def numbers(_: click.Context, option: click.Parameter, text: str | None) -> list[int]:
    """`512` or `512,768`. Errors: BadParameter for another form."""
    try:
        return [int(number) for number in text.split(",")] if text else []
    except ValueError:
        raise click.BadParameter(f"{text!r} is no whole number, and no list of them with commas between", param=option) from None


@command
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--weights", help="hub, a PATH, or random[:SEED].  [default: the model's own]")
@click.option("--target", default="portable", help="portable, cpu, cuda, nnapi, coreml, qnn, webgpu or xnnpack.")
@click.option("--soc", metavar="NAME", help=f"The Snapdragon that the target qnn compiles for: {', '.join(each.name for each in SOCS)}.  "
              f"[default: {DEFAULT}]")
@click.option("--precision", help="fp32; fp16; weights of 8 or 4 bits: w8, w4; activations of 16 with weights of 8: a16w8; "
              "bf16 (target cpu, which has fp16 too).  [default: fp32; qnn: fp16]")
@click.option("--memory-budget", type=float, metavar="FACTOR", help="Let weights grow to FACTOR times the plain ones.  [default: freely]")
@click.option("--costs", metavar="CLASS|FILE", help="Weigh layers by the costs of this class of machines, or by those that runtime.bench "
              "--calibrate wrote on one (for arm64, which has no class yet).  [default: this machine's; without a class: x86-64-avx2's]")
@click.option("--height", callback=numbers, metavar="N[,N]", help="Pixels. With it, --width or --batch the package is static, "
              "unless --dynamic. 512,768 beside --width 768,512: graphs for both sizes over one file of weights.")
@click.option("--width", callback=numbers, metavar="N[,N]")
@click.option("--batch", callback=numbers, metavar="N[,N]", help="Pictures per run of a static package; 1,2: graphs for both.  "
              "[default: 1]")
@click.option("--allow-partitions", default=1, metavar="N", help="Take a graph that falls into N partitions on an accelerator.")
@click.option("--dynamic", is_flag=True, help="Keep batch, height, width and tokens free.")
@click.option("--lora", multiple=True, metavar="FILE:SCALE")
@click.option("--controlnet", metavar="ID")
@click.option("--check", type=click.Choice(["full", "quick", "none"]), help="Parity with torch.  [default: by size]")
@click.option("--force", is_flag=True, help="Replace the package at OUT.")
@click.option("--allow-pickle", is_flag=True, help="Read .ckpt and .bin files, which can hold code; only tensors are taken from them.")
def main(model: str, out: Path, weights: str | None, target: str, soc: str | None, precision: str | None, memory_budget: float | None,
         costs: str | None, height: list[int], width: list[int], batch: list[int], allow_partitions: int, dynamic: bool,
         lora: tuple[str, ...], controlnet: str | None, check: str | None, force: bool, allow_pickle: bool) -> None:
    """Exports MODEL (an alias, a hub id, a folder, a file) to a checked package at OUT."""
    if lora or controlnet:
        raise InputError(f"{'--lora' if lora else '--controlnet'} is not there yet: this version exports a checkpoint as it is")
    from export.accelerator import TARGETS
    from export.run import Request, export  # torch is slow to import, and --help needs none of it
    from export.sizes import paired

    free = dynamic or not (height or width or batch or target in TARGETS)
    sizes = tuple(paired(height, width)) if height and width else ()
    if max(len(height), len(width)) > 1 and not sizes:
        raise InputError("several sizes need their --height and their --width")
    if free and max(len(height), len(width), len(batch)) > 1:
        raise InputError("a package of several sizes is static: leave --dynamic out, or give one size")
    first, batches = sizes[0] if sizes else ((*height, None)[0], (*width, None)[0]), tuple(dict.fromkeys(batch)) or (1,)
    precision = precision or ("fp16" if target == "qnn" else "fp32")
    request = Request(model, out, weights, target, precision, *first, batches[0], free, check, force, allow_pickle, memory_budget, costs,
                      allow_partitions, sizes, batches, soc)
    made = export(request, click.echo)
    for name, component in made.manifest.components.items():
        found = component.parity
        result = f"SNR {found['snr_db']:.1f} dB, largest difference {found['max_abs']:.2g}" if found else "not checked"
        click.echo(f"  {name:15} {component.parameters / 1e6:8.1f} M  {result}")
        if (context := component.context) is not None:
            emulated = f"SNR {context.parity['snr_db']:.1f} dB in the emulator" if context.parity else "not emulated"
            click.echo(f"  {'':15} compiled for {context.soc} in {context.seconds:.0f} s with {context.peak_mb / 1e3:.1f} GB of memory: "
                       f"{context.bytes / 1e6:.1f} MB, {emulated}")
    if (walked := made.manifest.trajectory_parity) is not None:
        click.echo(f"  {walked['steps']} steps with guidance {walked['guidance']:g}: SNR {min(walked['snr_db_per_step']):.1f} dB at "
                   f"the worst step, pixels within {walked['picture_max_diff']}/255, "
                   f"prompt heard {walked['prompt_sensitivity']:.4f} times as loud")
    click.echo(f"{made.path} is ready")


if __name__ == "__main__":
    main()
