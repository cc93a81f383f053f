"""Weights stay out of anonymous memory, whatever their number: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import small_model
import torch
from safetensors.torch import load_file, save_file

from export.random_weights import spreads, write_random
from export.skeletons import shapes, skeleton

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from export.weights import open_checkpoint

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))

def load(model, weights, work):
    checkpoint = open_checkpoint(model, weights, Path(work))
    modules = [checkpoint.module(name) for name in checkpoint.configs]
    assert all(torch.isfinite(tensor.sum()) for module in modules for tensor in module.parameters())  # every page is read
    return modules, 4 * sum(map(checkpoint.parameters, checkpoint.configs))

torch.set_num_threads(1)
small, full, half, work = sys.argv[1:]
load(small, "random", work + "/small")  # what libraries load on first use is not the weights'
grown = {}
for how, model, weights in (("made", full, "random"), ("mapped", full, None), ("converted", half, None)):
    before = anonymous()
    modules, size = load(model, weights, work + "/" + how)
    grown[how] = (anonymous() - before) / size
    del modules
print(json.dumps({"grown": grown, "size": size}))
"""


def test_anonymous_memory_does_not_grow_with_the_weights(small_folder: Path, tmp_path: Path) -> None:
    """A model of 290 MB: made of random weights, mapped from float32, and converted from half precision."""
    parts = {"text_encoder": small_model.text_encoder(), "unet": small_model.unet(), "vae": small_model.vae()}
    name = "diffusion_pytorch_model.safetensors"
    full, half = (small_model.save(tmp_path / kind, parts) for kind in ("full", "half"))
    config = json.loads((full / "unet" / "config.json").read_text()) | {"block_out_channels": [96, 192, 384, 384]}
    for folder in (full, half):
        (folder / "unet" / "config.json").write_text(json.dumps(config))
    module = skeleton("unet", config)
    write_random(full / "unet" / name, 0, "unet", shapes(module), spreads(module))
    save_file({key: tensor.to(torch.float16) for key, tensor in load_file(full / "unet" / name).items()}, half / "unet" / name)

    command = [sys.executable, "-c", PROGRAM, str(small_folder), str(full), str(half), str(tmp_path / "work")]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert seen["size"] > 250e6
    for how, share in seen["grown"].items():
        assert share < 0.1, how  # the modules' own objects and a block per thread; one copy of the weights would be 1
