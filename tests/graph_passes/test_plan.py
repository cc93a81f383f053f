"""The plan against ONNX Runtime's own usability checker, and the rules that its tables don't state, each on the smallest graph."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from graphs import graph, run_in_runtime
from networks import NETWORKS
from onnxruntime.tools.mobile_helpers import usability_checker

from graph_passes import limits
from graph_passes import plan as plans
from graph_passes.errors import GraphError
from graph_passes.files import load, save
from graph_passes.limits import coreml, nnapi
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.functions import INLINE_FUNCTIONS
from graph_passes.passes.host import split_host
from graph_passes.passes.static_shapes import static_shapes
from graph_passes.pipelines import TARGETS
from graph_passes.plan import main, partitions, plan, text
from graph_passes.step import run

W = "float[4,3] w = {0.1,-0.2,0.3,0.4,-0.5,0.6,0.7,0.8,-0.9,1,1.1,-1.2}"
NEAREST = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
NEITHER = "it is no matrix times a constant one, nor as many times as many matrices"
LEFT_OUT = "the region of interest is left out, which ONNX Runtime's usability checker takes for a dynamic one"

# target, body, inputs, initializers, why the last node falls out, the pass that mends it
FAULTS = [
    ("nnapi", "y = Erf(x)", "float[2,3] x", "", "NNAPI has no Erf", "approximate GELU"),
    ("nnapi", "y = Relu(x)", "float[N,3] x", "", "a shape is not made of numbers alone", "fix static shapes"),
    ("nnapi", "y = Relu(x)", "float[1,1,1,2,3] x", "", "a tensor has more than 4 dimensions", ""),
    ("nnapi", "y = Add(x, x)", "int64[2,3] x", "", "the first input is INT64", "move to the host"),
    ("nnapi", "y = Mul(x, t)", "float[2,3] x, float t", "", "an input of the graph is a scalar", "move to the host"),
    ("nnapi", "y = MatMul(x, w)", "float[2,5,4] x", W, NEITHER, "multiply linear layers flat"),
    ("nnapi", "y = MatMul(x, z)", "float[2,5,4] x, float[1,4,3] z", "", NEITHER, ""),
    ("nnapi", "y = Gemm <alpha=2.0> (x, w)", "float[5,4] x", W, "A is transposed, or a product is scaled", ""),
    ("nnapi", "y = Gemm(x, z)", "float[5,4] x, float[4,3] z", "", "B is neither constant nor transposed", ""),
    ("nnapi", "y = Gemm(x, w, c)", "float[5,4] x, float[5,3] c", W, "C is more than one row", ""),
    ("nnapi", "y = Conv(x, k)", "float[1,1,4,4] x, float[1,1,3,3] k", "", "the weight is no constant", ""),
    ("nnapi", "y = Reshape(x, s)", "float[2,3] x, int64[1] s", "", "a shape is not made of numbers alone", "fix static shapes"),
    (
        "nnapi",
        "y, z = Split <axis=1> (x, s)",
        "float[2,3] x",
        "int64[2] s = {1,2}",
        "the parts are of different lengths, and NNAPI splits in equal ones",
        "",
    ),
    (
        "nnapi",
        "y = Clip(x, a, b)",
        "float[2,3] x",
        "float a = {0}, float b = {1}",
        "it is clipped to other bounds than 0 and 6, or -1 and 1",
        "",
    ),
    ("nnapi", f'y = Resize <{NEAREST}> (x, "", f)', "float[1,3,4,5] x", "float[4] f = {1,1,2,2}", LEFT_OUT, "enlarge by factors"),
    ("coreml", "y = Expand(x, s)", "float[1,3] x", "int64[2] s = {2,3}", "CoreML (MLProgram) has no Expand", "fix static shapes"),
    ("coreml", "y = Relu(x)", "float[1,16385] x", "", "a dimension is longer than 16384", "unfold groups"),
    ("coreml", "y = Relu(x)", "float[1,1,1,1,2,3] x", "", "a tensor has more than 5 dimensions", ""),
    ("coreml", "y = Gemm(x, z)", "float[5,4] x, float[4,3] z", "", "the matrix B is no constant", ""),
    (
        "coreml",
        "y = LayerNormalization(x, s)",
        "float[2,3] x",
        "float[3] s = {1,1,1}",
        "the axis is left to the default, which CoreML's provider takes for 1",
        "",
    ),
    ("coreml", "y = InstanceNormalization(x, s, s)", "float[2,3,4] x, float[3] s", "", "the scale is no constant", ""),
    (
        "coreml",
        f"y = Resize <{NEAREST}> (x, r, f)",
        "float[1,3,4,4] x",
        "float[8] r = {0,0,0,0,1,1,1,1}, float[4] f = {1,1,1.5,2}",
        "it does more than to enlarge height and width by whole factors",
        "",
    ),
    ("xnnpack", "y = Relu(x)", "float[2,3] x", "", "XNNPACK has no Relu", ""),
    ("xnnpack", "y = MatMul(x, w)", "float[2,5,4] x", W, "it is no product of two matrices", "multiply linear layers flat"),
    ("xnnpack", "y = MatMul(x, z)", "float[5,4] x, float[4,3] z", "", "the second factor is no constant", ""),
    (
        "xnnpack",
        "y = Gemm(x, w)",
        "float[5,4] x",
        W,
        "it has no C, and the provider dies of that (ONNX Runtime's issue 28541)",
        "add zero biases",
    ),
    ("xnnpack", "y = Softmax <axis=0> (x)", "float[2,3] x", "", "it is not over the last axis", ""),
    (
        "xnnpack",
        f'y = Resize <{NEAREST}> (x, "", f)',
        "float[1,3,4,4] x",
        "float[4] f = {1,1,2,2}",
        "only bilinear interpolation is taken",
        "",
    ),
    ("xnnpack", "y = Conv(x, k)", "float[N,1,4,4] x, float[1,1,3,3] k", "", "a shape is not made of numbers alone", "fix static shapes"),
    ("webgpu", "y = Round(x)", "float[2,3] x", "", "WebGPU has no Round", ""),
    ("webgpu", "y = Mul(x, x)", "int64[2,3] x", "", "the first input is INT64", "move to the host"),
]


@pytest.mark.parametrize(("target", "body", "inputs", "initializers", "why", "mend"), FAULTS)
def test_a_node_falls_out_and_the_plan_says_why(target: str, body: str, inputs: str, initializers: str, why: str, mend: str) -> None:
    kind = "int64[]" if inputs.startswith("int64") else "float[]"
    model = graph(body, inputs, outputs=f"{kind} y, {kind} z" if "y, z" in body else f"{kind} y", initializers=initializers)
    made = plan(model, target)
    assert (made.taken, made.partitions) == (0, ())
    assert next((fault.why, fault.mend) for refusal in made.refusals for fault in refusal.faults) == (why, mend)


def test_a_plan_weighs_what_is_taken_and_says_what_a_device_must_bind() -> None:
    body = "a = MatMul(x, w) y = MatMul(a, z)"
    model = graph(body, "float[512,4] x, float[3,70000] z", initializers=W)
    made = plan(model, "xnnpack")
    assert (made.taken, made.macs, made.crossing_bytes) == (1, (512 * 4 * 3, 512 * 3 * (4 + 70000)), 0)
    said = text(made)
    assert said.startswith("XNNPACK: takes 1 of 2 nodes (50.0 %) and 0.0 % of the multiply-accumulates; nothing is copied at their")
    assert "usability checker" not in said
    made = plan(model, "webgpu")
    assert (made.taken, made.largest_tensor, made.checker) == (2, 512 * 70000 * 4, None)
    assert (
        "The largest tensor has 143.4 MB, and every device binds 134.2 MB: this graph needs one that binds more "
        "(maxStorageBufferBindingSize)." in text(made)
    )


@pytest.mark.parametrize("faults_of", [nnapi, coreml])
def test_what_the_pipelines_make_has_no_fault(faults_of: object) -> None:
    body = f"""c = Conv <pads=[1,1,1,1]> (x, k) u = Resize <{NEAREST}> (c, r, f) m = ReduceMean(u, a) s = Sub(u, m) t = Tanh(s)
        p = Softmax <axis=-1> (t) q = MatMul(p, t) g = Reshape(q, n) y = Gemm(g, w, b)"""
    initializers = """float[1,1,3,3] k = {1,2,3,4,5,6,7,8,9}, float[8] r = {0,0,0,0,1,1,1,1}, float[4] f = {1,1,2,2}, int64[2] a = {2,3},
        int64[2] n = {16,4}, float[4,2] w = {1,2,3,4,5,6,7,8}, float[2] b = {1,2}"""
    model = graph(body, "float[1,1,4,4] x", initializers=initializers)
    assert [list(faults_of(node)) for node in model.graph] == [[]] * 9  # type: ignore[operator]


def test_partitions_end_where_nothing_else_can_go_on() -> None:
    # a -> B -> c, and d -> e beside them: B waits until everything that can run before it has, so that there are two groups and not three
    model = graph("a = Relu(x) b = Erf(a) c = Relu(b) d = Tanh(x) e = Tanh(d) y = Add(c, e)", "float[2,3] x")
    taken = {node for node in model.graph if node.op_type != "Erf"}
    groups = partitions(model.graph, taken)
    assert [{node.outputs[0].name for node in group} for group in groups] == [{"a", "d", "e"}, {"c", "y"}]
    assert partitions(model.graph, set()) == []
    assert len(partitions(model.graph, set(model.graph))) == 1
    made = plan(model, "nnapi")
    assert (made.nodes, made.taken, made.partitions, made.places) == (6, 5, (3, 2), (1, 0, 2, 1, 1, 2))
    # a to the CPU, b back, and e from the first group to the second: 24 bytes each
    assert made.crossing_bytes == 72
    assert made.summary()["map"] == [[1, 1], [0, 1], [2, 1], [1, 2], [2, 1]]
    assert made.checker == (5, 2)


@pytest.mark.parametrize(
    ("network", "exporter"),
    [
        # the old exporter picks the text encoder's pooled row in another form, which stays on the CPU
        *((network, "dynamo") for network in ("text_encoder", "unet", "vae_decoder", "vae_encoder")),
        *((network, "torchscript") for network in ("unet", "vae_decoder", "vae_encoder")),
    ],
)
@pytest.mark.parametrize("target", ["nnapi", "coreml"])
def test_a_lowered_network_is_one_partition_for_the_usability_checker_too(
    exported: object, network: str, exporter: str, target: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(exported(network, exporter))  # type: ignore[operator]
    shapes = {name: tuple(value.shape) for name, value in NETWORKS[network]().inputs.items()}
    run(model, (INLINE_FUNCTIONS, LIFT_CONSTANTS, static_shapes(shapes), *TARGETS[target]))
    split_host(model)
    made = plan(model, target)
    assert made.summary()["faults"] == []
    assert (made.taken, len(made.partitions)) == (made.nodes, 1)
    assert made.checker == (made.nodes, 1)
    # and as the command itself asks, which lets ONNX Runtime optimize the graph first: no norm may come back
    save(model, tmp_path / "model.onnx")
    caplog.set_level(logging.INFO)
    usability_checker.analyze_model(tmp_path / "model.onnx", skip_optimize=False, logger=logging.getLogger("usability"))
    said = caplog.text[caplog.text.index({"nnapi": "Checking NNAPI", "coreml": "Checking CoreML MLProgram"}[target]) :]
    counts = next(line for line in said.splitlines() if "partitions with a total of" in line)
    partitions_said, nodes = counts.split("partitions with a total of ")[0].split()[-1], counts.split("total of ")[1].split(" ")[0]
    assert partitions_said == "1"
    assert nodes.split("/")[0] == nodes.split("/")[1]


def test_the_command_prints_and_writes_the_plan(tmp_path: Path) -> None:
    model = graph("a = Relu(x) b = Erf(a) y = Relu(b)", "float[2,3] x")
    ir.save(model, tmp_path / "model.onnx")
    result = CliRunner().invoke(main, [str(tmp_path / "model.onnx"), "--target", "nnapi", "--json", str(tmp_path / "plan.json")])
    assert result.exit_code == 0, result.output
    assert "NNAPI: 2 partitions with 2 of 3 nodes (66.7 %); 0.0 MB cross the borders in a run" in result.output
    assert "1 x Erf: NNAPI has no Erf: 'approximate GELU' mends it" in result.output
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["refused"] == [
        {"node": "node_1", "operator": "Erf", "faults": [{"why": "NNAPI has no Erf", "mend": "approximate GELU", "what": ""}]}
    ]
    assert written["checker"] == {"taken": 2, "partitions": 2}


def test_the_command_says_what_to_do_next(tmp_path: Path) -> None:
    body = "t = Shape(x) i = Gather(t, first) n = Unsqueeze(i, first) s = Concat <axis=0> (n, last) r = Reshape(x, s) y = Erf(r)"
    file = tmp_path / "model.onnx"
    model = graph(body, "float[N,3,4] x", initializers="int64[1] first = {0}, int64[1] last = {-1}")
    model.graph.outputs[0].shape = ir.Shape([None, None])
    ir.save(model, file)
    arguments = [str(file), "--target", "nnapi"]
    result = CliRunner().invoke(main, arguments)
    # what computes sizes is gone with the free axes, though it is of integers, which the host would take
    assert "1 x Shape: NNAPI has no Shape: 'fix static shapes' mends it" in result.output
    assert "move to the host" not in result.output
    assert result.output.endswith("NNAPI takes static shapes only: fix those of x with --static to see what else falls out.\n")
    result = CliRunner().invoke(main, [*arguments, "--static", "x=2x3x4"])
    assert "1 x Erf: NNAPI has no Erf: 'approximate GELU' mends it" in result.output
    assert result.output.endswith(
        f"'python -m graph_passes {file} OUT.onnx --target nnapi --static x=2x3x4' runs the passes that are named.\n"
    )
    result = CliRunner().invoke(main, [*arguments, "--json", str(tmp_path / "missing" / "plan.json")])
    assert (result.exit_code, result.output) == (2, f"error: There is no folder {tmp_path / 'missing'} to write plan.json into.\n")


def test_a_target_without_a_table_is_refused(tmp_path: Path) -> None:
    *most, last = (each.name for each in plans.TARGETS)
    sentence = f"There is no table of what 'cpu' takes. There is one for {', '.join(most)} and {last}."
    with pytest.raises(GraphError, match=f"^{re.escape(sentence)}$"):
        plan(graph("y = Relu(x)", "float[2] x"), "cpu")
    ir.save(graph("y = Relu(x)", "float[2] x"), tmp_path / "model.onnx")
    result = CliRunner().invoke(main, [str(tmp_path / "model.onnx"), "--target", "cpu"])
    assert result.exit_code == 2


def test_the_host_computes_what_depends_on_ids_and_the_timestep_alone() -> None:
    body = """e = Gather(table, ids) h = Relu(e) a = Mul(t, f) s = Sin(a) c = Cos(a) q = Concat <axis=0> (s, c) l = Add(h, q)
        o = OneHot(ids, depth, onoff) y = MatMul(o, l)"""
    model = graph(
        body,
        "int64[3] ids, float t",
        initializers="float[3,4] table = {1,2,3,4,5,6,7,8,9,10,11,12}, float[2] f = {1,2}, int64 depth = {3}, float[2] onoff = {0,1}",
    )
    feeds = {"ids": np.array([2, 0, 1]), "t": np.array(0.5, np.float32)}
    (expected,) = run_in_runtime(model, feeds)
    host = split_host(model)
    assert host is not None
    assert [node.op_type for node in host.graph] == ["Gather", "Mul", "Sin", "Cos", "Concat", "OneHot"]
    assert [value.name for value in host.graph.inputs] == ["ids", "t"]
    assert [value.name for value in host.graph.outputs] == [value.name for value in model.graph.inputs] == ["gather", "sin", "onehot"]
    assert sorted(model.graph.initializers) == []
    made = dict(zip(["gather", "sin", "onehot"], run_in_runtime(host, feeds), strict=True))
    np.testing.assert_array_equal(run_in_runtime(model, made)[0], expected)


def test_the_hosts_outputs_are_called_after_the_modules_that_make_them() -> None:
    model = graph("c = Cos(t) s = Sin(t) q = Concat <axis=0> (c, s) r = Reshape(q, n) y = Relu(r)", "float[2] t",
                  initializers="int64[2] n = {1,4}")  # fmt: skip
    for node in model.graph:
        node.name = f"model/{node.op_type}" if node.op_type in ("Reshape", "Relu") else f"model.add_time_proj/{node.op_type}"
    host = split_host(model)
    assert host is not None
    assert [value.name for value in host.graph.outputs] == ["add_time_proj"]


def test_a_graph_of_pictures_has_nothing_for_the_host() -> None:
    assert split_host(graph("y = Relu(x)", "float[1,3,4,4] x")) is None


def test_every_pass_that_is_said_to_mend_something_exists() -> None:
    source = Path(limits.__file__).read_text(encoding="utf-8")
    named = {mend for target in plans.TARGETS for mend in target.mends.values()} | {mend for *_, mend in FAULTS if mend}
    assert named <= {each.name for passes in TARGETS.values() for each in passes} | {"move to the host", "fix static shapes"}
    assert all(f'"{mend}"' in source or mend in {name for target in plans.TARGETS for name in target.mends.values()} for mend in named)
