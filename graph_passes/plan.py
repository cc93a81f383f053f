"""python -m graph_passes.plan MODEL.onnx --target T: what of a graph a target takes, in how many partitions, and why not the rest.

A node is taken when the target has its operator, its shapes are static, and it has no fault of `graph_passes.limits`. Taken nodes are
joined to partitions as ONNX Runtime joins them. For NNAPI and CoreML, whose operators are in tables that ONNX Runtime ships, its own
usability checker is asked too, which knows the tables alone: what it says of the operators must be what is said here.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from onnxruntime.tools.mobile_helpers import usability_checker

from graph_passes.errors import GraphError
from graph_passes.files import load
from graph_passes.limits import HOST, Fault, Limits, coreml, cuda, nnapi, webgpu, xnnpack
from graph_passes.operators import CUDA, WEBGPU, XNNPACK
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.functions import INLINE_FUNCTIONS
from graph_passes.passes.shapes import INFER_SHAPES, without_weights
from graph_passes.passes.static_shapes import parse_shapes, static_shapes
from graph_passes.step import run
from graph_passes.values import DEFAULT_DOMAINS, is_constant, is_standard, static_shape
from graph_passes.work import Uncounted, macs_of

TABLES = Path(usability_checker.__file__).parent
WEBGPU_BINDING = 1 << 27  # bytes: what every WebGPU device binds to a shader (maxStorageBufferBindingSize); most bind more


@dataclass(frozen=True)
class Target:
    """An accelerator and its `operators`: a set of `domain:Operator`, or the file of one of ONNX Runtime's tables.

    `mends` names the pass that lowers an operator that it has not; `needs` says what the provider asks for beside the graph. `is_compiled`:
    a partition becomes one program; otherwise each node is one. `in_memory`: it reads and writes the CPU's memory, so that no border costs.
    `binding`: bytes of the largest tensor that every device of its kind takes. `takes_free_axes`: shapes need not be numbers alone.
    """

    name: str
    title: str
    operators: str | frozenset[str]
    limits: Limits
    mends: dict[str, str]
    needs: str
    most_dimensions: int = 999  # for the usability checker, which knows this one limit for CoreML
    is_compiled: bool = True
    in_memory: bool = False
    binding: int | None = None
    takes_free_axes: bool = False


TARGETS = (
    Target(
        "nnapi",
        "NNAPI",
        "nnapi_supported_ops.md",
        nnapi,
        {
            "InstanceNormalization": "lower instance norms",
            "LayerNormalization": "lower layer norms",
            "GroupNormalization": "lower group norms",
            "Erf": "approximate GELU",
            "Gelu": "approximate GELU",
            **dict.fromkeys(("Cos", "ArgMax", "OneHot", "Equal", "Where", "GatherND"), HOST),
            **dict.fromkeys(("Expand", "Shape"), "fix static shapes"),
        },
        "Android 10 (NNAPI feature level 3), and weights in the graph or handed over in memory: initializers in other files are refused",
    ),
    Target(
        "coreml",
        "CoreML (MLProgram)",
        "coreml_supported_mlprogram_ops.md",
        coreml,
        {**dict.fromkeys(("Gather", "OneHot", "Equal"), HOST), "Expand": "fix static shapes"},
        "the option ModelFormat=MLProgram (iOS 15, macOS 12), and weights in the graph or handed over in memory",
        5,
    ),
    Target(
        "xnnpack",
        "XNNPACK",
        XNNPACK,
        xnnpack,
        {},
        "a build of ONNX Runtime with XNNPACK, as those for Android and iOS are, and ONNX Runtime's own threads at 1 or not spinning",
        is_compiled=False,
        in_memory=True,
    ),
    Target(
        "webgpu",
        "WebGPU",
        WEBGPU,
        webgpu,
        {"GroupNormalization": "lower group norms"},
        "a browser with WebGPU (onnxruntime-web), or the plugin onnxruntime-ep-webgpu and a GPU with its driver",
        is_compiled=False,
        binding=WEBGPU_BINDING,
        takes_free_axes=True,
    ),
    Target(
        "cuda",
        "CUDA",
        CUDA,
        cuda,
        {"GroupNormalization": "lower group norms"},
        "the package onnxruntime-gpu and an NVIDIA GPU with its driver; what computes shapes ONNX Runtime leaves to the CPU on purpose",
        is_compiled=False,
        takes_free_axes=True,
    ),
)


@dataclass(frozen=True)
class Refusal:
    """A node that a target does not take, and why."""

    node: str
    op_type: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Plan:
    """`partitions` holds the number of nodes of each; `places` the partition of each node (0: none, the CPU has it) in the order of the
    graph; `crossing_bytes` what is copied from one place to another in a run. `macs`: multiply-accumulates of the nodes that are taken, and
    of all, those of unknown shapes left out. `largest_tensor`: in bytes, of those that taken nodes read or write. `checker` is what ONNX
    Runtime's usability checker says, where it knows the target: (nodes that are taken, partitions).
    """

    target: str
    partitions: tuple[int, ...]
    places: tuple[int, ...]
    refusals: tuple[Refusal, ...]
    crossing_bytes: int
    macs: tuple[int, int]
    largest_tensor: int
    checker: tuple[int, int] | None

    @property
    def nodes(self) -> int:
        return len(self.places)

    @property
    def taken(self) -> int:
        return sum(self.partitions)

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps: figures, each kind of fault with the number of its nodes, and `map` with runs of [place, nodes]."""
        faults = Counter((refusal.op_type, fault.why, fault.mend) for refusal in self.refusals for fault in refusal.faults)
        return {
            "target": self.target,
            "nodes": self.nodes,
            "taken": self.taken,
            "partitions": list(self.partitions),
            "is_compiled": target_named(self.target).is_compiled,
            "crossing_bytes": self.crossing_bytes,
            "macs": {"taken": self.macs[0], "all": self.macs[1]},
            "largest_tensor_bytes": self.largest_tensor,
            "faults": [
                {"operator": op_type, "nodes": count, "why": why, "pass": mend} for (op_type, why, mend), count in faults.most_common()
            ],
            "map": [[place, len(list(run))] for place, run in groupby(self.places)],
            "checker": {"taken": self.checker[0], "partitions": self.checker[1]} if self.checker else None,
        }


def plan(model: ir.Model, target: str) -> Plan:
    """How `target` takes a graph with inferred shapes and no Constant nodes. The model is left as it is.

    Errors: GraphError for a target without a table.
    """
    found = target_named(target)
    operators = table(found.operators) if isinstance(found.operators, str) else found.operators
    nodes = list(model.graph)
    sizes = _size_nodes(nodes)
    faults = {node: tuple(_faults(node, found, operators, node in sizes)) for node in nodes}
    taken = [node for node in nodes if not faults[node]]
    groups = partitions(nodes, set(taken))
    place = {node: number for number, group in enumerate(groups, 1) for node in group}
    places = {node: place.get(node, 0) for node in nodes}
    return Plan(
        target,
        tuple(map(len, groups)),
        tuple(places.values()),
        tuple(Refusal(node.name or "", node.op_type, faults[node]) for node in nodes if faults[node]),
        0 if found.in_memory else _crossing_bytes(places),
        (sum(map(_macs, taken)), sum(map(_macs, nodes))),
        max((_bytes(value) for node in taken for value in (*node.inputs, *node.outputs) if value is not None), default=0),
        _asked_of_checker(model, found.operators, found.most_dimensions) if isinstance(found.operators, str) else None,
    )


def target_named(name: str) -> Target:
    """Errors: GraphError for a target whose operators are not known."""
    found = next((each for each in TARGETS if each.name == name), None)
    if found is None:
        *known, last = (each.name for each in TARGETS)
        raise GraphError(f"There is no table of what {name!r} takes. There is one for {', '.join(known)} and {last}.")
    return found


def table(file: str) -> frozenset[str]:
    """The operators of one of ONNX Runtime's tables, as `domain:Operator`."""
    rows = (line.split("|") for line in (TABLES / file).read_text(encoding="utf-8").splitlines() if line.startswith("|"))
    return frozenset(row[1] for row in rows if len(row) == 4 and ":" in row[1])


def partitions(nodes: Iterable[ir.Node], taken: set[ir.Node]) -> list[list[ir.Node]]:
    """Groups of taken nodes, each of which can run in one piece: a node joins the open group when all its inputs are there, and a node
    that is not taken ends it where nothing else can go on. This is how ONNX Runtime's providers group (partitioning_utils.cc)."""
    consumers: dict[ir.Node, list[ir.Node]] = {}
    missing: dict[ir.Node, int] = {}
    for node in nodes:
        producers = {producer for value in node.inputs if value is not None and (producer := value.producer()) is not None}
        missing[node] = len(producers)
        for producer in producers:
            consumers.setdefault(producer, []).append(node)
    groups: list[list[ir.Node]] = [[]]
    border: set[ir.Node] = set()  # what reads from the open group
    ready, later = deque(node for node, count in missing.items() if not count), deque[ir.Node]()
    while ready or later:
        if not ready:
            groups.append([])
            border.clear()
            ready, later = later, ready
        node = ready.popleft()
        if node not in taken and node in border:
            later.append(node)  # it has to wait until the group has run
            continue
        if node in taken:
            groups[-1].append(node)
            border.update(consumers.get(node, ()))
        for consumer in consumers.get(node, ()):
            missing[consumer] -= 1
            if not missing[consumer]:
                ready.append(consumer)
    return [group for group in groups if group]


def _size_nodes(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """What computes on the sizes of tensors alone, and is gone once these are numbers."""
    found: set[ir.Node] = set()
    for node in nodes:
        sources = [value for value in node.inputs if value is not None and not is_constant(value)]
        if is_standard(node, "Shape") or (sources and all(value.producer() in found for value in sources)):
            found.add(node)
    return found


def _faults(node: ir.Node, target: Target, operators: frozenset[str], is_of_sizes: bool) -> Iterator[Fault]:
    domain = "ai.onnx" if node.domain in DEFAULT_DOMAINS else node.domain
    if f"{domain}:{node.op_type}" not in operators:
        yield Fault(f"{target.title} has no {node.op_type}", "fix static shapes" if is_of_sizes else target.mends.get(node.op_type, ""))
        return
    # an output that is left out has no name
    unknown = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name and static_shape(value) is None]
    if unknown and not target.takes_free_axes:
        yield Fault("a shape is not made of numbers alone", "fix static shapes", f"'{unknown[0].name}' {unknown[0].shape}")
        return
    for fault in target.limits(node):
        yield replace(fault, mend="fix static shapes") if is_of_sizes else fault


def _crossing_bytes(places: dict[ir.Node, int]) -> int:
    """Bytes of what is made in one place and read in another, once for each place that reads it."""
    made = ((node, place, value) for node, place in places.items() for value in node.outputs)
    return sum(
        _bytes(value) * len({places[use.node] for use in value.uses() if use.node in places} - {place}) for node, place, value in made
    )


def _bytes(value: ir.Value) -> int:
    """The size of a tensor; 0 where its shape or type is not known."""
    shape = static_shape(value)
    return 0 if shape is None or value.dtype is None else math.ceil(math.prod(shape) * value.dtype.itemsize)


def _macs(node: ir.Node) -> int:
    try:
        return macs_of(node)
    except Uncounted:
        return 0


def _asked_of_checker(model: ir.Model, table_file: str, most_dimensions: int) -> tuple[int, int]:
    """(nodes that are taken, partitions) by ONNX Runtime's own usability checker, which needs no weights."""
    operators = usability_checker._SupportedOpsChecker(str(TABLES / table_file))
    graph = without_weights(model).graph
    said = usability_checker.check_partitioning(graph, operators, bool(graph.value_info), most_dimensions)
    return said.num_supported_nodes, said.num_partitions


def text(made: Plan) -> str:
    """A plan for a terminal."""
    target = target_named(made.target)
    shares = f"{made.taken} of {made.nodes} nodes ({_percent(made.taken, made.nodes)})"
    if made.macs[1]:
        shares += f" and {_percent(*made.macs)} of the multiply-accumulates"
    count = len(made.partitions)
    pieces = f"{count} partition{'' if count == 1 else 's'} with " if target.is_compiled else "takes "
    borders = "nothing is copied at their borders" if target.in_memory else f"{made.crossing_bytes / 1e6:.1f} MB cross the borders in a run"
    lines = [f"{target.title}: {pieces}{shares}; {borders}"]
    if made.checker:
        lines.append(f"ONNX Runtime's usability checker: {made.checker[1]} with {made.checker[0]}, by the operators alone")
    for fault in made.summary()["faults"]:
        mend = f": '{fault['pass']}' mends it" if fault["pass"] else ""
        lines.append(f"  {fault['nodes']:5} x {fault['operator']}: {fault['why']}{mend}")
    if target.binding is not None and made.largest_tensor > target.binding:
        lines.append(
            f"The largest tensor has {made.largest_tensor / 1e6:.1f} MB, and every device binds {target.binding / 1e6:.1f} MB: "
            "this graph needs one that binds more (maxStorageBufferBindingSize)."
        )
    return "\n".join([*lines, f"The provider needs {target.needs}."])


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("source", metavar="MODEL.onnx", type=click.Path(path_type=Path))
@click.option("--target", required=True, help=f"Whose plan to make: {', '.join(each.name for each in TARGETS)}.")
@click.option("--static", multiple=True, metavar="NAME=SHAPE", help="Fix the shape of an input, such as sample=2x4x64x64; repeatable.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the plan, with every node that falls out, to this file.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(source: Path, target: str, static: tuple[str, ...], report: Path | None, debug: bool) -> None:
    """Says how a target would take MODEL.onnx: in how many partitions, what falls out and why, and which pass would mend it."""
    try:
        if report is not None and not report.absolute().parent.is_dir():
            raise GraphError(f"There is no folder {report.absolute().parent} to write {report.name} into.")
        known = target_named(target)
        model = load(source)
        shapes = parse_shapes(static)
        run(model, (INLINE_FUNCTIONS, LIFT_CONSTANTS, *([static_shapes(shapes)] if shapes else []), INFER_SHAPES))
        made = plan(model, target)
    except GraphError as error:
        if debug:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(text(made))
    free = [str(value.name) for value in model.graph.inputs if static_shape(value) is None]
    if free and not known.takes_free_axes:
        click.echo(f"{known.title} takes static shapes only: fix those of {', '.join(free)} with --static to see what else falls out.")
    elif any(fault.mend for refusal in made.refusals for fault in refusal.faults):
        call = " ".join(["python -m graph_passes", str(source), "OUT.onnx --target", target, *(f"--static {each}" for each in static)])
        click.echo(f"'{call}' runs the passes that are named.")
    if report is not None:
        refused = [
            {"node": each.node, "operator": each.op_type, "faults": [asdict(fault) for fault in each.faults]} for each in made.refusals
        ]
        report.write_text(json.dumps({**made.summary(), "refused": refused}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
