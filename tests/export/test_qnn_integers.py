"""Activations of 16 bits with weights of 8 in the emulator of the NPU: held against the CPU, and what goes wrong unmended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from export.calibration import Measured
from export.context_binary import compile_graph
from graph_passes.passes.quantize_static import quantize_static
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.precision import lowered
from graph_passes.step import Pass, run
from runtime.compare import snr_db
from runtime.providers import provider
from runtime.snapdragon import soc

SM8550 = soc("sm8550")
INPUTS = [{"x": np.random.default_rng(seed).normal(size=(1, 56, 8, 8)).astype(np.float32)} for seed in range(2)]
# a number to each channel, SiLU and a convolution, which wants another order of axes
SCALED = "m = Mul(x, gain) a = Add(m, offset) s = Sigmoid(a) n = Mul(a, s) y = Conv <pads = [1, 1, 1, 1]> (n, w, b)"
ATTENTION = """r = Reshape(x, rows) q = Transpose <perm = [0, 2, 1]> (r) k = Mul(r, scale) s = MatMul(q, k)
    p = Softmax <axis = -1> (s) o = MatMul(p, q) t = Transpose <perm = [0, 2, 1]> (o) y = Reshape(t, picture)"""
NORM = """r = Reshape(x, rows) t = Transpose <perm = [0, 2, 1]> (r) n = LayerNormalization <axis = -1> (t, g, b)
    u = Transpose <perm = [0, 2, 1]> (n) y = Reshape(u, picture)"""
LINEAR = """r = Reshape(x, rows) t = Transpose <perm = [0, 2, 1]> (r) m = MatMul(t, v) a = Add(m, b)
    u = Transpose <perm = [0, 2, 1]> (a) y = Reshape(u, picture)"""
WEIGHTS = {
    "gain": np.random.default_rng(2).normal(size=(56, 1, 1)), "offset": np.random.default_rng(3).normal(size=(56, 1, 1)),
    "w": np.random.default_rng(4).normal(size=(56, 56, 3, 3)) / 22, "b": np.random.default_rng(5).normal(size=56),
    "g": 1 + np.random.default_rng(6).normal(size=56) / 5, "scale": np.array(0.13),
    "v": np.random.default_rng(7).normal(size=(56, 56)) * np.geomspace(1, 0.03, 56),
}
SHAPES = {"rows": np.array([1, 56, 64]), "picture": np.array([1, 56, 8, 8])}


def graph(body: str) -> ir.Model:
    """x [1, 56, 8, 8] -> y of the same shape."""
    arrays = {name: array.astype(np.float32) for name, array in WEIGHTS.items()} | SHAPES
    declared = [f"{'float' if name in WEIGHTS else 'int64'}{list(array.shape)} {name}" for name, array in arrays.items()]
    ports = f"(float[1,56,8,8] x, {', '.join(declared)}) => (float[1,56,8,8] y)"
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g {ports} {{ {body} }}')
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(arrays[str(value.name)])
        if value.uses():
            model.graph.register_initializer(value)
    run(model, (INFER_SHAPES,))
    return model


def emulated(model: ir.Model, passes: Sequence[Pass], folder: Path) -> tuple[float, list[int]]:
    """Compiles what the passes make; returns the emulator's SNR against the CPU's provider on the same graph, and the nodes it took."""
    run(model, passes)
    ir.save(model, folder / "graph.onnx")
    (folder / "out").mkdir()
    compiled = compile_graph(folder / "graph.onnx", folder / "out" / "model.onnx", SM8550)
    options = ort.SessionOptions()
    provider("qnn").on_soc(SM8550.name).add_to(options)
    (got,) = ort.InferenceSession(compiled.file, options).run(None, INPUTS[0])
    (expected,) = ort.InferenceSession(folder / "graph.onnx", providers=["CPUExecutionProvider"]).run(None, INPUTS[0])
    return snr_db(expected, got), [len(compiled.taken), sum(compiled.left.values())]


@pytest.mark.parametrize("body", [SCALED, ATTENTION, NORM, LINEAR], ids=["scaled", "attention", "norm", "linear"])
def test_the_npu_computes_what_the_cpu_does(body: str, tmp_path: Path) -> None:
    decibel, (partitions, left) = emulated(graph(body), lowered("a16w8", "qnn", Measured(INPUTS)), tmp_path)
    assert (partitions, left) == (1, 0)
    assert decibel > 50.0


@pytest.mark.parametrize("body", [SCALED, ATTENTION], ids=["scaled", "attention"])
def test_what_the_passes_mend(body: str, tmp_path: Path) -> None:
    """Should a newer QNN do without, the pass can go."""
    decibel, _ = emulated(graph(body), (quantize_static(Measured(INPUTS)),), tmp_path)
    assert decibel < 45.0
