"""python -m graph_passes.plan MODEL.onnx --target T: what of a graph a target takes, in how many partitions, and why not the rest.

A node is taken when its operator is in the table that ONNX Runtime ships for the target, its shapes are static, and it has no fault of
`graph_passes.limits`. Taken nodes are joined to partitions as ONNX Runtime joins them. ONNX Runtime's own usability checker, which
knows the tables alone, is asked too: what it says of the operators must be what is said here.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from onnxruntime.tools.mobile_helpers import usability_checker

from graph_passes.errors import GraphError
from graph_passes.files import load
from graph_passes.limits import HOST, Fault, Limits, coreml, nnapi
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.functions import INLINE_FUNCTIONS
from graph_passes.passes.shapes import INFER_SHAPES, without_weights
from graph_passes.passes.static_shapes import parse_shapes, static_shapes
from graph_passes.step import run
from graph_passes.values import DEFAULT_DOMAINS, static_shape

TABLES = Path(usability_checker.__file__).parent


@dataclass(frozen=True)
class Target:
    """An accelerator whose operators ONNX Runtime ships a table of. `mends` names the pass that lowers an operator that is not in it;
    `needs` says what the provider asks for beside the graph."""

    name: str
    title: str
    table: str
    limits: Limits
    mends: dict[str, str]
    needs: str
    most_dimensions: int = 999  # for the usability checker, which knows this one limit for CoreML


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
    graph; `crossing_bytes` what is copied from one place to another in a run. `checker` is what ONNX Runtime's usability checker says:
    (nodes that are taken, partitions).
    """

    target: str
    partitions: tuple[int, ...]
    places: tuple[int, ...]
    refusals: tuple[Refusal, ...]
    crossing_bytes: int
    checker: tuple[int, int]

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
            "crossing_bytes": self.crossing_bytes,
            "faults": [
                {"operator": op_type, "nodes": count, "why": why, "pass": mend} for (op_type, why, mend), count in faults.most_common()
            ],
            "map": [[place, len(list(run))] for place, run in groupby(self.places)],
            "checker": {"taken": self.checker[0], "partitions": self.checker[1]},
        }


def plan(model: ir.Model, target: str) -> Plan:
    """How `target` takes a graph with inferred shapes and no Constant nodes. The model is left as it is.

    Errors: GraphError for a target without a table.
    """
    found = next((each for each in TARGETS if each.name == target), None)
    if found is None:
        known = " and ".join(each.name for each in TARGETS)
        raise GraphError(f"There is no table of what {target!r} takes. ONNX Runtime has one for {known}.")
    operators = table(found.table)
    nodes = list(model.graph)
    faults = {node: tuple(_faults(node, found, operators)) for node in nodes}
    groups = partitions(nodes, {node for node in nodes if not faults[node]})
    place = {node: number for number, group in enumerate(groups, 1) for node in group}
    places = {node: place.get(node, 0) for node in nodes}
    refusals = tuple(Refusal(node.name or "", node.op_type, faults[node]) for node in nodes if faults[node])
    return Plan(
        target,
        tuple(map(len, groups)),
        tuple(places.values()),
        refusals,
        _crossing_bytes(places),
        _asked_of_checker(model, found),
    )


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


def _faults(node: ir.Node, target: Target, operators: frozenset[str]) -> Iterator[Fault]:
    domain = "ai.onnx" if node.domain in DEFAULT_DOMAINS else node.domain
    if f"{domain}:{node.op_type}" not in operators:
        yield Fault(f"{target.title} has no {node.op_type}", target.mends.get(node.op_type, ""))
        return
    unknown = [value for value in (*node.inputs, *node.outputs) if value is not None and static_shape(value) is None]
    if unknown:
        yield Fault("a shape is not made of numbers alone", "fix static shapes", f"'{unknown[0].name}' {unknown[0].shape}")
        return
    yield from target.limits(node)


def _crossing_bytes(places: dict[ir.Node, int]) -> int:
    """Bytes of what is made in one place and read in another, once for each place that reads it."""
    total = 0
    for node, place in places.items():
        for value in node.outputs:
            shape = static_shape(value)
            if shape is not None and value.dtype is not None:
                size = value.dtype.itemsize
                for length in shape:
                    size *= length
                total += int(size) * len({places[use.node] for use in value.uses() if use.node in places} - {place})
    return total


def _asked_of_checker(model: ir.Model, target: Target) -> tuple[int, int]:
    """(nodes that are taken, partitions) by ONNX Runtime's own usability checker, which needs no weights."""
    operators = usability_checker._SupportedOpsChecker(str(TABLES / target.table))
    graph = without_weights(model).graph
    said = usability_checker.check_partitioning(graph, operators, bool(graph.value_info), target.most_dimensions)
    return said.num_supported_nodes, said.num_partitions


def text(made: Plan) -> str:
    """A plan for a terminal."""
    target = next(each for each in TARGETS if each.name == made.target)
    count = len(made.partitions)
    lines = [
        f"{target.title}: {count} partition{'' if count == 1 else 's'} with {made.taken} of {made.nodes} nodes "
        f"({100 * made.taken / max(1, made.nodes):.1f} %); {made.crossing_bytes / 1e6:.1f} MB cross the borders in a run",
        f"ONNX Runtime's usability checker: {made.checker[1]} with {made.checker[0]}, by the operators alone",
    ]
    for fault in made.summary()["faults"]:
        mend = f": '{fault['pass']}' mends it" if fault["pass"] else ""
        lines.append(f"  {fault['nodes']:5} x {fault['operator']}: {fault['why']}{mend}")
    return "\n".join([*lines, f"The provider needs {target.needs}."])


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("source", metavar="MODEL.onnx", type=click.Path(path_type=Path))
@click.option("--target", required=True, help=f"Whose plan to make: {', '.join(each.name for each in TARGETS)}.")
@click.option("--static", multiple=True, metavar="NAME=SHAPE", help="Fix the shape of an input, such as sample=2x4x64x64; repeatable.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the plan, with every node that falls out, to this file.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(source: Path, target: str, static: tuple[str, ...], report: Path | None, debug: bool) -> None:
    """Says how a target would take MODEL.onnx: in how many partitions, what falls out and why, and which pass would mend it."""
    try:
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
    if report is not None:
        refused = [
            {"node": each.node, "operator": each.op_type, "faults": [asdict(fault) for fault in each.faults]} for each in made.refusals
        ]
        report.write_text(json.dumps({**made.summary(), "refused": refused}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
