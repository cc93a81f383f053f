"""What 3x3 convolutions cost on this machine, directly and by Winograd's algorithm: the table that graph_passes weighs layers with.

Each algorithm is measured as an export would run it, as one node in a session of ONNX Runtime with the kernel library: threads come from
the session, layouts are converted as between the nodes of a U-Net, and plain weights are in the model (only there does ONNX Runtime lay
them out for its own convolution). The model is written by `one_op`: nothing but the runtime is needed, so that a device can be calibrated
too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from runtime.errors import Unavailable
from runtime.machine import describe, usable_cores
from runtime.one_op import BFLOAT16, one_op
from runtime.session import CUSTOM_OPS_DOMAIN, custom_ops_library

FORMAT = 1
# (channels in, channels out, height and width): layers of the U-Nets at 64x64 and of the decoder at 512x512, a corner or two beside them
LAYERS = (
    (4, 320, 64), (320, 4, 64), (320, 320, 64), (640, 320, 64), (960, 640, 32), (640, 640, 32), (1920, 640, 32), (640, 640, 64),
    (1280, 1280, 32), (1280, 1280, 16), (2560, 1280, 16), (1280, 1280, 8), (2560, 1280, 8), (512, 512, 64), (512, 512, 128),
    (512, 512, 256), (256, 256, 256), (256, 256, 512), (256, 128, 512), (128, 128, 512), (128, 3, 512), (64, 64, 32), (64, 64, 128),
)  # fmt: skip
# (tile, precision of the operands); tile 0 is ONNX Runtime's own convolution
Algorithm = tuple[int, str]
ALGORITHMS: tuple[Algorithm, ...] = ((0, "fp32"), (2, "fp32"), (4, "fp32"), (6, "fp32"), (2, "bf16"), (4, "bf16"))
# Shared machines are slow for seconds at a time. So the fastest time counts, and what two rounds that lie apart do not agree on is measured
# in more of them.
ROUNDS, AGREEMENT = 3, 1.04
LEAST_RUNS, LEAST_SECONDS = 2, 0.05  # of one round


def calibrate(threads: int, layers: Sequence[tuple[int, int, int]] = LAYERS, step: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Measures all algorithms on all layers: {format, machine, threads, rows [{tile, precision, channels_in, .., height, width, ms}]}.

    `threads` 0: one per core. `step` is called ROUNDS times for each layer and algorithm. Errors: Unavailable without the kernel library.
    """
    library = custom_ops_library()
    if library is None:
        raise Unavailable("the kernels are not built, and without them there is nothing to weigh: run 'make kernels'")
    threads = threads or usable_cores()
    pairs = [(layer, each) for layer in layers for each in ALGORITHMS if each[1] == "fp32" or layer[0] % 2 == 0]
    times: dict[tuple[tuple[int, int, int], Algorithm], list[float]] = {pair: [] for pair in pairs}
    for _ in range(ROUNDS):
        for (layer, algorithm), measured in times.items():
            if not _agree(measured):
                measured.append(measure(*algorithm, *layer, library, threads))
            step()
    rows = [_row(layer, algorithm, min(measured)) for (layer, algorithm), measured in times.items()]
    return {"format": FORMAT, "machine": describe(), "threads": threads, "rows": rows}


def _agree(measured: Sequence[float]) -> bool:
    """Whether the two fastest times are about the same."""
    return len(measured) > 1 and sorted(measured)[1] <= AGREEMENT * min(measured)


def _row(layer: tuple[int, ...], algorithm: Algorithm, milliseconds: float) -> dict[str, Any]:
    channels_in, channels_out, side = layer
    sizes = {"channels_in": channels_in, "channels_out": channels_out, "height": side, "width": side}
    return {"tile": algorithm[0], "precision": algorithm[1], **sizes, "ms": round(milliseconds, 4)}


def measure(tile: int, precision: str, channels_in: int, channels_out: int, side: int, library: Path, threads: int) -> float:
    """Milliseconds of one run: the fastest of several, which is what nothing else on the machine has disturbed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    model, feeds = _trial(tile, precision, channels_in, channels_out, side)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.run_with_ort_values(["y"], feeds)
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or sum(seconds) < LEAST_SECONDS:
        start = time.perf_counter()
        session.run_with_ort_values(["y"], feeds)
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds)


def _trial(tile: int, precision: str, channels_in: int, channels_out: int, side: int) -> tuple[bytes, dict[str, ort.OrtValue]]:
    """A model of one convolution, and its inputs: transformed weights are among them, as the kernel takes them where they are."""
    x, y = (1, channels_in, side, side), (1, channels_out, side, side)
    bias = _numbers((channels_out,))
    feeds = {"x": ort.OrtValue.ortvalue_from_numpy(_numbers(x))}
    if not tile:
        weights = {"w": _numbers((channels_out, channels_in, 3, 3)), "bias": bias}
        return one_op("Conv", "", {"x": x}, weights, y, {"pads": [1, 1, 1, 1]}), feeds
    # the order of transformed weights is winograd_conv.h's
    shape: tuple[int, ...] = (-(-channels_out // 8), (tile + 2) ** 2, channels_in, 8)
    if precision == "bf16":
        shape = (*shape[:2], channels_in // 2, 8, 2)
        halves = (_numbers(shape).view(np.uint32) >> 16).astype(np.uint16)
        feeds["u"] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(halves, BFLOAT16)
    else:
        feeds["u"] = ort.OrtValue.ortvalue_from_numpy(_numbers(shape))
    attributes = {"tile": tile, "channels_out": channels_out}
    bfloat16 = ("u",) if precision == "bf16" else ()
    return one_op("WinogradConv", CUSTOM_OPS_DOMAIN, {"x": x, "u": shape}, {"bias": bias}, y, attributes, bfloat16), feeds


def _numbers(shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers, which repeat themselves: they do not matter to the time that their product takes."""
    return np.resize(np.random.default_rng(0).standard_normal(4093, np.float32), shape)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a terminal: a line for each layer, a column in ms for each algorithm."""
    times = {(row["channels_in"], row["channels_out"], row["height"], row["tile"], row["precision"]): row["ms"] for row in rows}
    names = [f"F({tile}x{tile}) {precision}" if tile else "ONNX Runtime" for tile, precision in ALGORITHMS]
    lines = [f"{'layer':22}" + "".join(f"{name:>14}" for name in names)]
    for layer in dict.fromkeys(key[:3] for key in times):
        cells = [times.get((*layer, *algorithm)) for algorithm in ALGORITHMS]
        text = f"{layer[0]} -> {layer[1]} at {layer[2]}x{layer[2]}"
        lines.append(f"{text:22}" + "".join(f"{'-' if cell is None else format(cell, '.2f'):>14}" for cell in cells))
    return "\n".join(lines)
