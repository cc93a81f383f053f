"""`python -m android_bench PACKAGE`: what runtime.bench measures, measured on a device. This version has no transport to a device yet."""

from __future__ import annotations

from pathlib import Path

import click


class Unavailable(click.ClickException):
    """What was asked for is right, and not to be had here. This room sees only runtime.manifest and runtime.report, so it has its own."""

    exit_code = 3


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("package", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--device", default="adb", metavar="adb[:SERIAL]|ssh:HOST|local", help="Where to measure.")
@click.option("--ep", default="cpu", metavar="LIST", help="Execution providers, separated by commas: cpu,nnapi,...")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the measurement to this file.")
def main(package: Path, device: str, ep: str, json_file: Path | None) -> None:
    """Measure PACKAGE on a device."""
    raise Unavailable(f"this version cannot measure on '{device}' yet: measure on this machine with 'python -m runtime.bench {package}'")


if __name__ == "__main__":
    main()
