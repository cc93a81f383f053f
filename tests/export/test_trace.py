"""What the exporter makes of a component: names, axes, one opset, and weights that nobody copied."""

from __future__ import annotations

import collections
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file

from export.component import Component
from export.families import sd
from export.safetensors_file import mapped
from export.trace import OPSET, trace
from export.weights import open_checkpoint
from runtime.errors import CheckFailed
from runtime.manifest import Package

# As optimum computes output shapes: it evaluates these very strings.
INTERFACES = {
    "text_encoder": ({"input_ids": ["batch_size", "sequence_length"]},
                     {"last_hidden_state": ["batch_size", "sequence_length", 96], "pooler_output": ["batch_size", 96]}),
    "unet": ({"sample": ["batch_size", 4, "height", "width"], "timestep": [],
              "encoder_hidden_states": ["batch_size", "sequence_length", 96]},
             {"out_sample": ["batch_size", 4, "height", "width"]}),
    "vae_encoder": ({"sample": ["batch_size", 3, "sample_height", "sample_width"]},
                    {"latent_parameters": ["batch_size", 8, "sample_height / 8", "sample_width / 8"]}),
    "vae_decoder": ({"latent_sample": ["batch_size", 4, "latent_height", "latent_width"]},
                    {"sample": ["batch_size", 3, "latent_height * 8", "latent_width * 8"]}),
}


def ports(values: object) -> dict[str, list[int | str]]:
    return {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def graphs(tiny_package: Path) -> dict[str, onnx.ModelProto]:
    """The graphs of the embedded model's package."""
    package = Package.open(tiny_package)
    return {name: onnx.load(package.file(name)) for name in package.manifest.components}


@pytest.mark.parametrize("name", INTERFACES)
def test_the_interface_is_optimums(name: str, graphs: dict[str, onnx.ModelProto], tiny_package: Path) -> None:
    inputs, outputs = INTERFACES[name]
    graph = graphs[name].graph
    assert ports(graph.input) == inputs
    assert list(ports(graph.input)) == list(inputs)
    assert ports(graph.output) == outputs
    assert list(ports(graph.output)) == list(outputs)
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    assert kinds == {key: onnx.TensorProto.INT64 if key == "input_ids" else onnx.TensorProto.FLOAT for key in inputs}
    told = Package.open(tiny_package).manifest.components[name]
    assert {port.name: list(port.shape) for port in told.inputs} == inputs
    assert {port.name: list(port.shape) for port in told.outputs} == outputs
    assert all(port.dtype == ("int64" if port.name == "input_ids" else "float32") for port in (*told.inputs, *told.outputs))


@pytest.mark.parametrize("name", INTERFACES)
def test_every_graph_has_the_one_opset(name: str, graphs: dict[str, onnx.ModelProto], tiny_package: Path) -> None:
    assert {entry.domain: entry.version for entry in graphs[name].opset_import} == {"": OPSET}
    assert Package.open(tiny_package).manifest.components[name].opset == OPSET


def test_no_name_of_torchs_is_left_in_a_shape(graphs: dict[str, onnx.ModelProto]) -> None:
    """torch calls a free axis s and a number."""
    for name, model in graphs.items():
        axes = {dim.dim_param for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
                for dim in value.type.tensor_type.shape.dim if dim.dim_param}
        assert axes, name
        assert not [axis for axis in axes if re.search(r"\bs\d+\b", axis)], name


def test_the_structure_is_that_of_stable_diffusion(graphs: dict[str, onnx.ModelProto], tiny_checkpoint: Path) -> None:
    """SD 1.x: 22 residual blocks with two norms, 16 transformers with one, one at the end; 16 transformers of two attentions, three
    layer norms and a GEGLU. The decoder: 14 residual blocks, one attention, one at the end."""
    count = {name: collections.Counter(node.op_type for node in model.graph.node) for name, model in graphs.items()}

    def group_norms(name: str) -> int:
        return sum(count[name][kind] for kind in ("InstanceNormalization", "GroupNorm", "GroupNormSilu"))

    assert group_norms("unet") == 22 * 2 + 16 + 1 == 61
    assert count["unet"]["LayerNormalization"] == 16 * 3
    assert count["unet"]["Gelu"] + count["unet"]["Erf"] == 16
    assert count["unet"]["Softmax"] == 16 * 2
    assert group_norms("vae_decoder") == 14 * 2 + 1 + 1 == 30
    assert count["vae_decoder"]["Softmax"] == count["vae_encoder"]["Softmax"] == 1
    config = json.loads((tiny_checkpoint / "text_encoder" / "config.json").read_text())
    assert count["text_encoder"]["Softmax"] == config["num_hidden_layers"]


def test_every_parameter_is_in_the_graph(graphs: dict[str, onnx.ModelProto], tiny_checkpoint: Path, tiny_package: Path, tmp_path: Path,
                                         ) -> None:
    """By their sums: rewriting may transpose a weight, and may not lose or change one."""
    checkpoint = open_checkpoint(str(tiny_checkpoint), None, tmp_path)
    stored = {name: np.sort([math.fsum(parameter.flatten().tolist()) for parameter in build().module.parameters()])
              for name, build in sd.components(checkpoint, None, 0) if name == "text_encoder"}
    held = np.sort([math.fsum(onnx.numpy_helper.to_array(tensor).ravel().tolist()) for tensor in graphs["text_encoder"].graph.initializer
                    if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims)])
    missing = [value for value in stored["text_encoder"] if np.abs(held - value).min() > 1e-9 * max(1, abs(value))]
    assert missing == []
    parameters = {name: component.parameters for name, component in Package.open(tiny_package).manifest.components.items()}
    assert parameters["text_encoder"] == checkpoint.parameters("text_encoder")
    assert parameters["unet"] == checkpoint.parameters("unet")
    assert parameters["vae_encoder"] + parameters["vae_decoder"] == checkpoint.parameters("vae")


# --- tracing itself, on a module that is traced in a moment ----------------------------------------------------------------------------


class Small(torch.nn.Module):
    """A convolution, a norm and a projection of a condition: what a U-Net is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.condition = torch.nn.Linear(6, 8)

    def forward(self, sample: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.norm(self.convolution(sample)) + self.condition(condition).mean(1)[:, :, None, None]
        return torch.nn.functional.interpolate(hidden, scale_factor=2.0), hidden.mean((2, 3))


AXES = {"sample": {0: "batch_size", 2: "height", 3: "width"}, "condition": {0: "batch_size", 1: "sequence_length"},
        "picture": {0: "batch_size", 2: "height * 2", 3: "width * 2"}, "mean": {0: "batch_size"}}


def small(module: torch.nn.Module | None = None) -> Component:
    inputs = {"sample": torch.zeros(2, 4, 8, 16), "condition": torch.zeros(2, 7, 6)}
    return Component("small", (module or Small()).eval().requires_grad_(False), inputs, ("picture", "mean"), AXES)


def shapes(values: object) -> dict[str, list[int | str]]:
    return {value.name: [dim if isinstance(dim, int) else dim.value for dim in value.shape] for value in values}  # type: ignore[attr-defined]


def test_free_axes_carry_the_components_names() -> None:
    model = trace(small(), dynamic=True)
    assert shapes(model.graph.inputs) == {"sample": ["batch_size", 4, "height", "width"], "condition": ["batch_size", "sequence_length", 6]}
    assert shapes(model.graph.outputs) == {"picture": ["batch_size", 8, "height * 2", "width * 2"], "mean": ["batch_size", 8]}
    assert model.graph.name == "small"
    assert model.graph.opset_imports[""] == OPSET


def test_a_static_graph_has_only_numbers_in_its_shapes() -> None:
    model = trace(small(), dynamic=False)
    assert shapes(model.graph.inputs) == {"sample": [2, 4, 8, 16], "condition": [2, 7, 6]}
    assert shapes(model.graph.outputs) == {"picture": [2, 8, 16, 32], "mean": [2, 8]}
    assert all(value.shape is None or value.shape.is_static() for node in model.graph.all_nodes() for value in node.outputs)


def test_a_static_package_has_only_numbers_in_its_shapes(small_folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(small_folder), None, tmp_path)
    component = dict(sd.components(checkpoint, (64, 64), 2))["text_encoder"]()
    model = trace(component, dynamic=False)
    assert shapes(model.graph.inputs) == {"input_ids": [2, 77]}
    assert shapes(model.graph.outputs) == {"last_hidden_state": [2, 77, 32], "pooler_output": [2, 32]}


def test_initializers_are_the_modules_own_memory(tmp_path: Path) -> None:
    """Nothing is copied: the weights may be larger than memory, and stay in the file that they are mapped from."""
    save_file(Small().state_dict(), tmp_path / "small.safetensors")
    module = Small()
    module.load_state_dict(mapped(tmp_path / "small.safetensors"), assign=True)
    model = trace(small(module), dynamic=True)
    for name, parameter in module.named_parameters():
        held = model.graph.initializers[name].const_value
        assert isinstance(held, ir.TensorProtocol)
        assert held.raw.data_ptr() == parameter.data_ptr(), name  # type: ignore[attr-defined]


def test_what_cannot_be_traced_is_named() -> None:
    class Branching(torch.nn.Module):
        def forward(self, sample: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (sample, condition) if sample.sum() > 0 else (condition, sample)

    with pytest.raises(CheckFailed, match="'small' cannot be traced: Could not guard on data-dependent expression"):
        trace(small(Branching()), dynamic=True)


# --- the same input gives the same file ------------------------------------------------------------------------------------------------

TWICE = """
import sys
from pathlib import Path
from export.families import sd
from export.package import write_graph
from export.trace import trace
from export.weights import open_checkpoint
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

folder, out = map(Path, sys.argv[1:])
for name, build in sd.components(open_checkpoint(str(folder), None, out / "work"), None, 0):
    if name in ("text_encoder", "vae_decoder"):
        model = trace(build(), dynamic=True)
        run(model, PORTABLE)
        write_graph(out, name, model)
"""


def test_two_exports_give_the_same_bytes(small_folder: Path, tmp_path: Path) -> None:
    """In two processes whose sets and hashes are in another order."""
    outs = [tmp_path / seed for seed in ("1", "2")]
    running = []
    for out in outs:
        out.mkdir()
        command = [sys.executable, "-c", TWICE, str(small_folder), str(out)]
        running.append(subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": out.name}))
    assert [process.wait() for process in running] == [0, 0]
    for name in ("text_encoder", "vae_decoder"):
        one, other = ((out / name / "model.onnx").read_bytes() for out in outs)
        assert one == other, name


class Complement(torch.nn.Module):
    """1 - x is `aten.rsub`, which torch's exporter can translate only after it decomposed it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 - x


@pytest.mark.parametrize(("module", "traces"), [(Complement(), 2), (torch.nn.Conv2d(2, 2, 1), 1)])
def test_only_what_has_no_translation_is_traced_twice(module: torch.nn.Module, traces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed = []
    original = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions",
                        lambda self, table=None: decomposed.append(self) or original(self, table))
    x = torch.linspace(-1, 1, 24).reshape(1, 2, 3, 4)
    model = trace(Component("part", module.eval(), {"x": x}, ("y",), {}, {}), dynamic=False)
    assert 1 + len(decomposed) == traces
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    (got,) = session.run(None, {"x": x.numpy()})
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
