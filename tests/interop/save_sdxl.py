"""Writes the checkpoint of tiny-sdxl as a diffusers folder; run by `make interop`, in the project's own environment.

    python tests/interop/save_sdxl.py FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file

from export.families import family_of
from export.stored import STEMS
from export.weights import open_checkpoint


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory() as work:
        checkpoint = open_checkpoint("tiny-sdxl", None, Path(work))
        for name, config in checkpoint.configs.items():
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text(json.dumps(config))
            # transformers 4 knows the first text encoder's tensors by their published names, as this project's export does
            prefix = "text_model." if name == "text_encoder" else ""
            tensors = {f"{prefix}{key}": tensor for key, tensor in checkpoint.module(name).state_dict().items()}
            save_file(tensors, folder / name / f"{STEMS[name]}.safetensors", metadata={"format": "pt"})
        for name, file in checkpoint.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(checkpoint.scheduler))
    index = family_of(checkpoint).index(checkpoint) | {"scheduler": ["diffusers", checkpoint.scheduler["_class_name"]]}
    (folder / "model_index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
