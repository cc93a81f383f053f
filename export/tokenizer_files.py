"""The tokenizer's files that go into a package: CLIP's classic pair vocab.json and merges.txt, and what stands beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from export.architecture import read_json
from runtime.errors import InputError

NAMES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
LENGTH = 77  # ids that CLIP's text encoders read
STAND_IN = "a stand-in: the vocabulary of the embedded model, because CLIP's is not part of random weights"


def tokenizer_files(folder: Path, work: Path) -> dict[str, Path]:
    """{"FOLDER/NAME": path} of the tokenizer in `folder`, whose last part is FOLDER: tokenizer or tokenizer_2.

    transformers 5 saves tokenizer.json alone: vocab.json and merges.txt, which every runtime reads, are then written to `work` from it.
    So is tokenizer_config.json where the length of a prompt is not named, without which transformers knows no end.
    Errors: InputError where there is no vocabulary.
    """
    files = {name: (folder / name).resolve() for name in NAMES if (folder / name).is_file()}
    if not {"vocab.json", "merges.txt"} <= files.keys():
        if "tokenizer.json" not in files:
            raise InputError(f"'{folder}' has no tokenizer: it needs vocab.json and merges.txt, or tokenizer.json")
        model = read_json(files["tokenizer.json"]).get("model", {})
        if model.get("type") != "BPE":
            raise InputError(f"'{files['tokenizer.json']}' holds no byte-pair vocabulary such as CLIP's")
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        files |= _write(work / folder.name, {"vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
                                             "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n"})
    config: dict[str, Any] = {"tokenizer_class": "CLIPTokenizer"}
    if "tokenizer_config.json" in files:
        config = read_json(files["tokenizer_config.json"])
    if not 0 < config.get("model_max_length", 0) <= LENGTH:
        files |= _write(work / folder.name, {"tokenizer_config.json": json.dumps(config | {"model_max_length": LENGTH}, indent=2) + "\n"})
    return {f"{folder.name}/{name}": files[name] for name in NAMES if name in files}


def stand_in_files(folder: Path, work: Path, name: str, pad_token: str) -> dict[str, Path]:
    """The vocabulary in `folder` (the embedded model's) in the layout that the models are published with, as the tokenizer `name`
    (tokenizer or tokenizer_2) with its `pad_token`."""
    own = tokenizer_files(folder, work)
    place = work / name
    place.mkdir(parents=True, exist_ok=True)
    copies = {}
    for file in ("vocab.json", "merges.txt"):
        copies[file] = place / file
        if own[f"{folder.name}/{file}"] != copies[file].resolve():
            shutil.copyfile(own[f"{folder.name}/{file}"], copies[file])
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad_token}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "add_prefix_space": False, **special}
    written = _write(place, {"tokenizer_config.json": json.dumps(config, indent=2) + "\n",
                             "special_tokens_map.json": json.dumps(special, indent=2) + "\n"})
    return {f"{name}/{file}": path for file, path in {**copies, **written}.items()}


def _write(folder: Path, texts: dict[str, str]) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in texts}
