"""What a model is made of, before any weight: its components' configs and its scheduler, from an alias or a diffusers folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.aliases import CONFIGS
from runtime.errors import InputError

PIPELINES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionInpaintPipeline": "sd",
    "StableDiffusionInpaintPipelineLegacy": "sd",
}
REQUIRED = ("text_encoder", "unet", "vae")
OPTIONAL = ("safety_checker",)


@dataclass(frozen=True)
class Architecture:
    """The configs of a model. `preprocessor` is the safety checker's, `pad_token` the tokenizer's; empty where a folder brings them."""

    name: str
    family: str
    configs: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    preprocessor: dict[str, Any] | None = None
    pad_token: str = ""

    def without(self, component: str) -> Architecture:
        """The same model with a component less."""
        return replace(self, configs={name: config for name, config in self.configs.items() if name != component})


def of_alias(name: str, family: str, configs: str) -> Architecture:
    """The architecture in export/configs/`configs`."""
    raw = json.loads((CONFIGS / configs).read_text(encoding="utf-8"))
    return Architecture(name, family, raw["components"], raw["scheduler"], raw.get("preprocessor"), raw["pad_token"])


def of_folder(folder: Path, name: str) -> Architecture:
    """The architecture of a diffusers folder. Errors: InputError where it is none, or of a pipeline that cannot be exported."""
    if not (folder / "model_index.json").is_file():
        raise InputError(f"'{folder}' is no diffusers model: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise InputError(f"'{folder}' is a {pipeline}, which this version cannot export: it exports {', '.join(PIPELINES)}")
    wanted = [*REQUIRED, *(part for part in OPTIONAL if (index.get(part) or [None])[0] is not None and (folder / part).is_dir())]
    configs = {part: read_json(folder / part / "config.json") for part in wanted}
    return Architecture(name, PIPELINES[pipeline], configs, read_json(folder / "scheduler" / "scheduler_config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Errors: InputError where the file is missing or no JSON object."""
    if not path.is_file():
        raise InputError(f"'{path}' is missing: the folder is no complete diffusers model")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"'{path}' holds no JSON object")
    return raw
