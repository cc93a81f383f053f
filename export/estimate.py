"""What an export will need, told before it starts: memory, disk and time."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from export.families.latents import scale_factor
from export.weights import Checkpoint
from runtime.errors import InputError

GB = 1e9
# Measured on two cores of a 2024 server (docs/measurements.md); a guess elsewhere, meant to tell seconds from hours.
PYTHON_AND_GRAPH = 1.2 * GB  # two processes with torch, diffusers and a traced graph, whatever the weights: SD 1.4 and SDXL alike
TRACE_SECONDS_PER_TENSOR = 0.024  # tracing and passes: SDXL's U-Net has 1,680 tensors, that of SD 1.4 686
WRITE_BYTES_PER_SECOND = 0.35 * GB
ACTIVATIONS = 4.0 * GB  # of a guided step at 512x512: the attention's scores, written out
ACTIVATIONS_SIDE = 512  # pixels
FLOP_PER_SECOND = 150e9
QUICK_FLOP_PER_WEIGHT = 12_000.0  # torch and ONNX Runtime together, two guided steps at 512x512
CONVOLUTIONS = ("unet", "vae")
COMPILER_GROWTH = 2.5  # of QNN's compiler over float32 weights: 8.4 GB for the U-Net of SD 1.4, which has 3.4
COMPILED_BYTES_PER_SECOND = 0.04 * GB
UNBOUNDED_GROWTH = 2.2  # of the U-Net of SD 1.4, with every layer at its fastest


@dataclass(frozen=True)
class Estimate:
    """Bytes of memory at the peak, bytes of disk at the peak, bytes of the finished package, seconds."""

    memory: float
    disk: float
    package: float
    seconds: float

    def __str__(self) -> str:
        return (f"about {self.memory / GB:.1f} GB of memory, {self.disk / GB:.1f} GB of disk ({self.package / GB:.1f} GB stay), "
                f"{_duration(self.seconds)}")


def estimate(checkpoint: Checkpoint, check: str, growth: float = 1.0, compiled: bool = False, bits: float = 32.0,
             measured: bool = False) -> Estimate:
    """Of an export with `check` full, quick or none; the networks with convolutions grow by `growth` where theirs are transformed, and all
    become float16 where they are `compiled` for a Snapdragon. `bits`: what a weight takes in the package; `measured`: trajectories in
    torch tell the ranges of activations before anything is written."""
    grown = {name: growth if name in CONVOLUTIONS else 1.0 for name in checkpoint.configs}
    sizes = {name: 4.0 * checkpoint.parameters(name) * grown[name] * bits / 32 for name in checkpoint.configs}
    package = sum(sizes.values())
    memory = PYTHON_AND_GRAPH
    seconds = 6 + TRACE_SECONDS_PER_TENSOR * sum(map(len, checkpoint.shapes.values())) + package / WRITE_BYTES_PER_SECOND
    runs = (0 if check == "none" else 6 if check == "full" else 1) + (1 if measured else 0)
    if runs:
        own = int(checkpoint.configs["unet"]["sample_size"]) * scale_factor(checkpoint.configs["vae"])
        larger = max(1.0, own / ACTIVATIONS_SIDE) if check == "full" else 1.0  # the quick check's pictures have no more
        # small models have small activations; large ones' weights are mapped, or in memory a layer at a time
        memory += min(ACTIVATIONS * larger, 5 * max(sizes.values()) * 32 / bits)
        seconds += package * 8 / bits * QUICK_FLOP_PER_WEIGHT / FLOP_PER_SECOND * runs * larger**2
    if compiled:  # after all else, one at a time; the graph of one goes when its binary is there
        memory = max(memory, PYTHON_AND_GRAPH + COMPILER_GROWTH * max(sizes.values()))
        seconds += package / COMPILED_BYTES_PER_SECOND
    disk = package + (max(sizes.values()) / 2 if compiled else 0) + 0.05 * GB
    return Estimate(memory, disk, package / 2 if compiled else package, seconds)


def require(needed: Estimate, out: Path) -> None:
    """Errors: InputError where the machine has too little memory or the disk of `out` too little room."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed.disk:
        raise InputError(f"the disk of '{folder}' has {free / GB:.1f} GB free where this export needs {needed.disk / GB:.1f} GB: "
                         "free some space or choose another disk")
    available = available_memory()
    if available is not None and available < needed.memory:
        raise InputError(f"{available / GB:.1f} GB of memory are free where this export needs {needed.memory / GB:.1f} GB: close other "
                         "programs, or take --check none, which needs the least")


def available_memory() -> float | None:
    """Bytes that programs can still get, as the kernel tells; None where it does not."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
