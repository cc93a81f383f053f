"""SDXL-Turbo's package, of SDXL's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from export import package
from export.architecture import of_alias
from export.defaults import pipeline
from export.families import family_of
from export.weights import open_checkpoint
from runtime.manifest import NAME, Package


def turbo(sdxl: Path, out: Path, work: Path) -> None:
    """Copies the package of tiny-sdxl and gives it the scheduler and the defaults of tiny-sdxl-turbo."""
    base, checkpoint = Package.open(sdxl), open_checkpoint("tiny-sdxl-turbo", None, work)
    assert checkpoint.configs == of_alias("tiny-sdxl", "sdxl", "tiny-sdxl.json").configs
    shutil.copytree(sdxl, out)
    (out / NAME).unlink()
    package.write_index(out, family_of(checkpoint).index(checkpoint), checkpoint.scheduler)
    defaults = pipeline(checkpoint, None, None, 1, dynamic=True)
    package.finish(out, replace(base.manifest, model="tiny-sdxl-turbo", pipeline=defaults, scheduler=checkpoint.scheduler))
