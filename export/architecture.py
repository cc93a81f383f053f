"""What a model is made of, before any weight: its components' configs and its scheduler, from an alias or a diffusers folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.aliases import CONFIGS
from runtime.errors import InputError

PIPELINES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionInpaintPipeline": "sd",
    "StableDiffusionInpaintPipelineLegacy": "sd",
    "LatentConsistencyModelPipeline": "sd",
    "LatentConsistencyModelImg2ImgPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
}
REQUIRED = {
    "sd": ("text_encoder", "unet", "vae"),
    "sdxl": ("text_encoder", "text_encoder_2", "unet", "vae"),
    "sdxl-refiner": ("text_encoder_2", "unet", "vae"),
}
OPTIONAL = ("safety_checker",)
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


@dataclass(frozen=True)
class Architecture:
    """The configs of a model. `options` are the plain values of its model_index.json. `preprocessor` is the safety checker's,
    `pad_tokens` {folder: token} the tokenizers'; empty where a folder brings them."""

    name: str
    family: str
    configs: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] | None = None
    pad_tokens: dict[str, str] = field(default_factory=dict)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The folders of its tokenizers, one for each text encoder."""
        return tuple(folder for part, folder in TOKENIZERS.items() if part in self.configs)

    def without(self, component: str) -> Architecture:
        """The same model with a component less."""
        return replace(self, configs={name: config for name, config in self.configs.items() if name != component})


def of_alias(name: str, family: str, configs: str) -> Architecture:
    """The architecture in export/configs/`configs`."""
    raw = json.loads((CONFIGS / configs).read_text(encoding="utf-8"))
    return Architecture(name, family, raw["components"], raw["scheduler"], raw.get("options", {}), raw.get("preprocessor"),
                        raw["pad_tokens"])


def of_folder(folder: Path, name: str) -> Architecture:
    """The architecture of a diffusers folder. Errors: InputError where it is none, or of a pipeline that cannot be exported."""
    if not (folder / "model_index.json").is_file():
        raise InputError(f"'{folder}' is no diffusers model: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise InputError(f"'{folder}' is a {pipeline}, which this version cannot export: it exports {', '.join(PIPELINES)}")
    family = PIPELINES[pipeline]
    if family == "sdxl" and not _has(index, "text_encoder"):
        family = "sdxl-refiner"  # whose published pipeline is an image to image of SDXL with the second text encoder alone
    if family != "sd" and not _has(index, "text_encoder_2"):
        raise InputError(f"'{folder}' names no second text encoder in its model_index.json: it is no complete SDXL checkpoint")
    wanted = [*REQUIRED[family], *(part for part in OPTIONAL if _has(index, part) and (folder / part).is_dir())]
    configs = {part: read_json(folder / part / "config.json") for part in wanted}
    options = {key: value for key, value in index.items() if not key.startswith("_") and isinstance(value, bool | int | float | str)}
    return Architecture(name, family, configs, read_json(folder / "scheduler" / "scheduler_config.json"), options)


def _has(index: dict[str, Any], part: str) -> bool:
    """Whether a model_index.json names a class for a part."""
    return (index.get(part) or [None])[0] is not None


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
