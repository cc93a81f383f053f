"""Weights stay out of anonymous memory, whatever their number: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import small_model
import torch
from safetensors.torch import save_file

from export.random_weights import fill_random, spreads
from export.skeletons import shapes, skeleton

PROGRAM = """
import json, sys, threading
from pathlib import Path
import torch
from export.weights import open_checkpoint

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))

@torch.no_grad()
def run(model, weights, work):
    checkpoint = open_checkpoint(model, weights, work)
    unet = checkpoint.module("unet")
    before, seen, over = anonymous(), [], threading.Event()
    watch = threading.Thread(target=lambda: [seen.append(anonymous()) for _ in iter(lambda: over.wait(0.002), True)])
    watch.start()
    output = unet(torch.ones(1, 4, 8, 8), 1, torch.ones(1, 77, 32)).sample
    over.set()
    watch.join()
    assert torch.isfinite(output).all() and output.std() > 0
    written = sum(file.stat().st_size for file in work.rglob("*.safetensors"))
    return (max(seen) - before) / (4 * checkpoint.parameters("unet")), 4 * checkpoint.parameters("unet"), len(seen), written

torch.set_num_threads(1)
small, full, half, work = map(Path, sys.argv[1:])
run(str(small), "random", work / "small")  # what libraries load on first use is not the weights'
print(json.dumps({"made": run(str(full), "random", work / "made"), "mapped": run(str(full), None, work / "mapped"),
                  "converted": run(str(half), None, work / "converted")}))
"""


def test_anonymous_memory_does_not_grow_with_the_weights(small_folder: Path, tmp_path: Path) -> None:
    """A U-Net of 250 MB runs: its weights made of a seed, mapped from float32, and converted from half precision."""
    parts = {"text_encoder": small_model.text_encoder(), "unet": small_model.unet(), "vae": small_model.vae()}
    name = "diffusion_pytorch_model.safetensors"
    full, half = (small_model.save(tmp_path / kind, parts) for kind in ("full", "half"))
    config = json.loads((full / "unet" / "config.json").read_text()) | {"block_out_channels": [96, 192, 384, 384]}
    for folder in (full, half):
        (folder / "unet" / "config.json").write_text(json.dumps(config))
    module = skeleton("unet", config)
    tensors = {key: torch.empty(shape) for key, shape in shapes(module).items()}
    for key, spread in spreads(module).items():
        fill_random(tensors[key].numpy().reshape(-1), 0, "unet", key, spread)
    save_file(tensors, full / "unet" / name)
    save_file({key: tensor.to(torch.float16) for key, tensor in tensors.items()}, half / "unet" / name)

    command = [sys.executable, "-c", PROGRAM, str(small_folder), str(full), str(half), str(tmp_path / "work")]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    for how, (grown, size, samples, written) in seen.items():
        assert size > 240e6
        assert samples > 20
        assert written == 0
        assert grown < 0.3, how  # a few layers and what they compute; one copy of the weights would be 1


WRITE = """
import json, struct, sys, threading
from pathlib import Path
import numpy as np
import onnx_ir as ir
import torch
from export.component import Component
from export.package import write_component
from export.safetensors_file import mapped
from export.trace import trace
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))

def export(folder, width, layers):
    folder.mkdir()
    with torch.device("meta"):
        module = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers))).eval().requires_grad_(False)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    save(folder / "weights.safetensors", shapes)
    module.load_state_dict(mapped(folder / "weights.safetensors"), assign=True)
    component = Component("layers", module, {"x": torch.zeros(1, 2, width)}, ("y",))
    model = trace(component, dynamic=False)
    steps = run(model, PORTABLE)
    write_component(folder, component, model, steps, 0)
    transposed = sum(isinstance(value.const_value, ir.LazyTensor) for value in model.graph.initializers.values())
    return 4 * component.parameters, transposed, (folder / "layers" / "model.onnx_data").stat().st_size

def save(path, shapes):
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * torch.Size(shape).numel()
        header[name], offset = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            np.resize(np.linspace(-1, 1, 1 << 16, dtype=np.float32), shape).tofile(file)

torch.set_num_threads(1)
work = Path(sys.argv[1])
export(work / "first", 2048, 5)  # what libraries load on first use is not the weights'
before, seen, over = anonymous(), [], threading.Event()
watch = threading.Thread(target=lambda: [seen.append(anonymous()) for _ in iter(lambda: over.wait(0.005), True)])
watch.start()
size, transposed, written = export(work / "second", 2048, 25)
over.set()
watch.join()
print(json.dumps({"grown": max(seen) - before, "samples": len(seen), "size": size, "transposed": transposed,
                  "written": written}))
"""


def test_tracing_rewriting_and_writing_keep_the_weights_in_their_file(tmp_path: Path) -> None:
    """420 MB in 25 matrices: they are transposed and written one after the other, and only those in the writers' hands are in memory."""
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert seen["size"] > 400e6
    assert seen["written"] >= 25 * 4 * 2048 * 2048
    assert seen["transposed"] == 25
    assert seen["samples"] > 20
    assert seen["grown"] < 0.25 * seen["size"]
