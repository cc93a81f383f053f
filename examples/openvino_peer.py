"""Times one ONNX graph in OpenVINO; `runtime.peers` runs it with the Python of an environment that has openvino and numpy, no more.

    python openvino_peer.py MODEL.onnx INPUTS.npz OUTPUTS.npz PRECISION THREADS REPEAT

INPUTS holds the inputs by name; OUTPUTS gets the outputs. Prints {load_ms, median_ms, runs, peer, version} as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
import openvino


def main(model: str, inputs: str, outputs: str, precision: str, threads: str, repeat: str) -> None:
    feeds = dict(np.load(inputs))
    start = time.perf_counter()
    core = openvino.Core()
    network = core.read_model(model)
    network.reshape({name: openvino.PartialShape(list(value.shape)) for name, value in feeds.items()})
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": int(threads), "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    load = time.perf_counter() - start
    results = request.infer(feeds)
    np.savez(outputs, **{port.get_any_name(): array for port, array in results.items()})
    seconds = []
    for _ in range(int(repeat)):
        start = time.perf_counter()
        request.infer(feeds)
        seconds.append(time.perf_counter() - start)
    figures = {"load_ms": 1e3 * load, "median_ms": 1e3 * statistics.median(seconds), "runs": len(seconds)}
    print(json.dumps({**figures, "peer": "openvino", "version": openvino.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
