"""A graph -> a context binary of a Snapdragon's NPU, by QNN's compiler in a process of its own.

    python -m export.context_binary GRAPH.onnx OUT.onnx SOC RESULT.json

In a process of its own, because the compiler writes to the terminal, keeps what it took (gigabytes for the U-Net of SD 1.4) and ends
the process where something is not to its taste.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from runtime.errors import CheckFailed, InputError, Unavailable
from runtime.machine import peak_rss_mb
from runtime.onnx_file import CONTEXT
from runtime.providers import provider
from runtime.snapdragon import Soc

PLUGIN = "onnxruntime-qnn"


@dataclass(frozen=True)
class Compiled:
    """What came out: `file` refers to `binary` by name. `taken` counts the nodes of each partition, as the provider counts them with what
    it put in between; `left` {operator: nodes} those that the CPU keeps. `peak_mb` is the most memory of the process, in 10^6 bytes."""

    file: Path
    binary: Path
    seconds: float
    peak_mb: float
    taken: tuple[int, ...]
    left: dict[str, int]


def require_compiler() -> None:
    """Errors: Unavailable where the package with QNN's compiler is not installed."""
    try:
        provider("qnn")
    except Unavailable as error:
        raise Unavailable(f"--target qnn compiles on this machine, and QNN's compiler is not available here ({error}): "
                          f"pip install {PLUGIN}, or 'handheld-diffusion[qnn]'") from error


def compile_graph(graph: Path, out: Path, soc: Soc) -> Compiled:
    """Compiles a static graph to `out`, in an existing folder, and its binary beside it. The weights go into the binary as float16.

    Errors: CheckFailed where the compiler refuses the graph, InputError where its process was killed.
    """
    result_file = out.with_suffix(".json")
    arguments = [sys.executable, "-m", "export.context_binary", str(graph), str(out), soc.name, str(result_file)]
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode < 0:
        raise InputError(f"QNN's compiler was killed by signal {-done.returncode} at '{graph.name}': is there enough memory?")
    result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8")) if result_file.is_file() else {}
    result_file.unlink(missing_ok=True)
    if "taken" not in result:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckFailed(f"QNN's compiler refuses '{graph.name}' for {soc.name}: {result.get('error', last)}")
    return Compiled(out, out.with_name(f"{out.stem}_qnn.bin"), result["seconds"], result["peak_mb"], tuple(result["taken"]), result["left"])


def _compile(graph: str, out: str, soc: str) -> dict[str, Any]:
    """The process's work; the result's fields are those of `Compiled`."""
    qnn = provider("qnn").on_soc(soc)
    # the integers of inputs and outputs are the binary's own affair, which takes and gives float32 in every precision
    qnn = replace(qnn, options=qnn.options | {"offload_graph_io_quantization": "0"})
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # embed mode 0: the binary in a file of its own, which ONNX's 2 GB end does not bound
    for key, value in (("enable", "1"), ("embed_mode", "0"), ("file_path", out)):
        options.add_session_config_entry(f"ep.context_{key}", value)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    qnn.add_to(options)
    start = time.perf_counter()
    session = ort.InferenceSession(graph, options, enable_fallback=0)
    seconds = time.perf_counter() - start
    taken: list[int] = []
    left: dict[str, int] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        nodes = subgraph.get_nodes()
        if subgraph.ep_name == qnn.ort_name:
            taken.append(len(nodes))
        else:
            for node in nodes:
                left[node.op_type] = left.get(node.op_type, 0) + 1
    return {"seconds": round(seconds, 2), "peak_mb": round(peak_rss_mb(), 1), "taken": taken, "left": left}


def compiler_version(file: Path) -> str:
    """The version of QNN that made a compiled graph, as it says itself."""
    nodes = (node for node in ir.load(file).graph if (node.domain, node.op_type) == CONTEXT)
    return next(node.attributes["ep_sdk_version"].as_string() for node in nodes)


def summary(file: Path, compiled: Compiled) -> dict[str, Any]:
    """The manifest's `plan` of a compiled graph at `file`, as `graph_passes.plan` gives it of other accelerators: no prediction."""
    graph = ir.load(file).graph
    places, number = {}, 0
    for node in graph:
        number += (node.domain, node.op_type) == CONTEXT
        places[node] = number if (node.domain, node.op_type) == CONTEXT else 0
    runs = ((place, compiled.taken[place - 1] if place else len(list(nodes))) for place, nodes in groupby(places.values()))
    return {
        "target": "qnn",
        "nodes": sum(compiled.taken) + sum(compiled.left.values()),
        "taken": sum(compiled.taken),
        "partitions": list(compiled.taken),
        "crossing_bytes": sum(_crossing(places)),
        "faults": [{"operator": name, "nodes": nodes, "why": "QNN's compiler leaves it to the CPU", "pass": ""}
                   for name, nodes in sorted(compiled.left.items(), key=lambda entry: -entry[1])],
        "map": [list(run) for run in runs],
    }


def _crossing(places: dict[ir.Node, int]) -> Iterator[int]:
    """Bytes of each value that is made in one place and read in another, once for each place that reads it."""
    for node, place in places.items():
        for value in node.outputs:
            if value.dtype is not None and value.shape is not None and value.shape.is_static():
                bytes_ = value.dtype.itemsize
                for length in value.shape.numpy():
                    bytes_ *= length
                yield int(bytes_) * len({places[use.node] for use in value.uses() if use.node in places} - {place})


def main(graph: str, out: str, soc: str, result_file: str) -> None:
    """The process's body: an error goes into the result file as {"error"}, for the parent to raise."""
    try:
        result = _compile(graph, out, soc)
    except Exception as error:  # ONNX Runtime's errors share no class of their own
        result = {"error": str(error).strip().splitlines()[0]}
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
