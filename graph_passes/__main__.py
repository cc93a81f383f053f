"""python -m graph_passes IN.onnx OUT.onnx: runs a pipeline on any ONNX file and prints what each pass did."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from tqdm import tqdm

from graph_passes.errors import GraphError
from graph_passes.files import check_free, load, save
from graph_passes.passes.host import HOSTED, split_host
from graph_passes.passes.static_shapes import parse_shapes
from graph_passes.pipelines import TARGETS, for_target
from graph_passes.step import Pass, Step, run


@dataclass(frozen=True)
class Wish:
    """What the pipeline is to be: see `for_target`. `static` and `at` are texts of `parse_shapes`."""

    target: str
    static: tuple[str, ...] = ()
    at: tuple[str, ...] = ()
    simplify: bool = False
    precision: str = "fp32"
    memory_budget: float | None = None
    costs: str | None = None
    winograd: str | None = None

    def passes(self) -> tuple[Pass, ...]:
        """Errors: GraphError."""
        return for_target(
            self.target,
            shapes=parse_shapes(self.static),
            simplify=self.simplify,
            precision=self.precision,
            at=parse_shapes(self.at, "--at"),
            budget=self.memory_budget,
            costs=self.costs,
            winograd_as=self.winograd,
        )


def transform(source: Path, out: Path, wish: Wish, force: bool, report: Path | None) -> None:
    """Everything that the command does. Errors: GraphError."""
    passes = wish.passes()
    if source.exists() and out.exists() and source.samefile(out):
        raise GraphError(f"{source} is both the input and the output: name another output file.")
    check_free(out, force)
    on_host = out.with_suffix(".host.onnx")
    if wish.target in HOSTED:
        check_free(on_host, force)
    if report is not None and not report.absolute().parent.is_dir():
        raise GraphError(f"There is no folder {report.absolute().parent} to write {report.name} into.")
    model = load(source)
    before = _nodes(model)
    steps = run(model, passes)
    host = split_host(model) if wish.target in HOSTED else None
    after = _nodes(model)
    click.echo(table(steps))
    click.echo(f"{before} nodes before, {after} after, in {sum(step.seconds for step in steps):.1f} s")
    size = sum(tensor.nbytes for graph in model.graphs() for tensor in graph.initializers.tensors())
    with tqdm(total=size, desc="weights", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        save(model, out, bar.update)
    click.echo(f"{out}: {size / 1e6:.1f} MB of weights")
    if host is not None:
        save(host, on_host)
        click.echo(f"{on_host}: what the CPU computes first, {', '.join(str(value.name) for value in host.graph.outputs)}")
    if report is not None:
        entries = [_entry(step) for step in steps]
        content = {"target": wish.target, "nodes_before": before, "nodes_after": after, "passes": entries}
        report.write_text(json.dumps(content, indent=2) + "\n")


def table(steps: list[Step]) -> str:
    """One line for each pass: its name, how many places it changed, its seconds; below it what it chose and what it refused."""
    width = max(len(step.name) for step in steps)
    lines = [f"{'pass':{width}}  applied  seconds"]
    for step in steps:
        lines.append(f"{step.name:{width}}  {step.applied:7}  {step.seconds:7.2f}")
        lines += [f"{'':{width}}  {note}" for note in step.notes]
        lines += [f"{'':{width}}  not: {reason}" for reason in step.refused]
    return "\n".join(lines)


def _entry(step: Step) -> dict[str, Any]:
    reasons = {"notes": list(step.notes), "refused": list(step.refused)}
    return {"name": step.name, "applied": step.applied, "seconds": step.seconds, **{key: texts for key, texts in reasons.items() if texts}}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("source", metavar="IN.onnx", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.onnx", type=click.Path(path_type=Path))
@click.option("--target", default="portable", help=f"Whose pipeline to run: {', '.join(TARGETS)}.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write what each pass did to this file.")
@click.option("--static", multiple=True, metavar="NAME=SHAPE", help="Fix the shape of an input, such as sample=2x4x64x64; repeatable.")
@click.option("--at", multiple=True, metavar="NAME=SHAPE", help="Leave the shape free, but weigh layers at this one; repeatable.")
@click.option("--precision", default="fp32", help="fp32, fp16 (without measured ranges), w8, w4; bf16 and fp16 for the target cpu.")
@click.option("--memory-budget", type=float, metavar="FACTOR", help="Let weights grow to FACTOR times the plain ones.  [default: freely]")
@click.option("--costs", metavar="CLASS|FILE", help="Weigh layers by the costs of this class of machines, or by those that runtime.bench "
              "--calibrate wrote on one (for arm64, which has no class yet).  [default: this machine's; without a class: x86-64-avx2's]")
@click.option("--winograd", metavar="subgraph|none", help="3x3 convolutions in standard operators, of static shapes; or left as they are.")
@click.option("--simplify", is_flag=True, help="Try onnxsim too.")
@click.option("--force", is_flag=True, help="Replace OUT.onnx.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(source: Path, out: Path, report: Path | None, force: bool, debug: bool, **wish: Any) -> None:
    """Rewrites IN.onnx for a target and writes OUT.onnx, with large weights in OUT.onnx_data beside it."""
    # a terminated process unwinds like an interrupted one, so that nothing half-written is left
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        transform(source, out, Wish(**wish), force, report)
    except GraphError as error:
        if debug:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)


def _nodes(model: ir.Model) -> int:
    """Number of nodes of the graph; what a custom op has as its body is not counted."""
    return sum(1 for _ in model.graph.all_nodes())


if __name__ == "__main__":
    main()
