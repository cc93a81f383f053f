"""A model's files from the Hugging Face hub: those in the local cache first, then the network."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from export.stored import STEMS
from runtime.errors import Unavailable

CONFIGS = ("model_index.json", "*/config.json", "scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json")
TOKENIZER = ("tokenizer/*.json", "tokenizer/*.txt", "tokenizer_2/*.json", "tokenizer_2/*.txt")
WEIGHTS = tuple(
    f"{part}/{name}"
    for part, stem in STEMS.items()
    for name in (f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}-*-of-*.safetensors")
)


def snapshot(repository: str, patterns: tuple[str, ...], needed: str) -> tuple[Path, str]:
    """The folder with the repository's files of these patterns, and its revision (commit hash).

    `needed`, a file or folder of the snapshot, tells a cached copy that holds it from one that was fetched for something else.
    HF_HUB_OFFLINE is respected. Errors: Unavailable, with the ways out.
    """
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True))
        if (folder / needed).exists():
            return folder, folder.name
    except Exception:  # whatever keeps the cache from being used: the network decides
        pass
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as error:  # the library's errors have no common base, and those of its HTTP library change with its version
        reason = type(error).__name__
        raise Unavailable(
            f"'{repository}' is not in the hub's cache of this machine and could not be fetched ({reason}): give a diffusers folder or a "
            f".safetensors file with --weights PATH, or take seeded random weights with an alias and --weights random") from error
    return folder, folder.name
