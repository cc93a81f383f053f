"""What an accelerator asks for beside the passes: the host's part as a graph of its own, and the proof that it takes the rest whole."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graph_passes.passes.host import split_host
from graph_passes.plan import plan
from runtime.errors import CheckFailed, InputError

WHOLE = ("nnapi", "coreml")  # take a graph whole or not at all, as their plan tells
HOSTED = (*WHOLE, "qnn")  # have what they do not take moved to the host; what QNN takes its own compiler tells, when the graph is written
TARGETS = (*HOSTED, "xnnpack")  # static shapes only
BESIDE = ("cuda", "webgpu", "xnnpack")  # leave to the CPU's provider what they do not take
ON_CPU = ("safety_checker",)  # runs once for a picture, and decides by comparisons that no accelerator has


def target_of(component: str, target: str) -> str:
    """Whose pipeline a component goes through."""
    return "portable" if target in HOSTED and component in ON_CPU else target


def require_static(target: str, dynamic: bool) -> None:
    """Errors: InputError where an accelerator is to take free axes."""
    if target in TARGETS and dynamic:
        raise InputError(f"the target {target} takes static shapes only: give --height and --width, and leave --dynamic out")


def fit(component: str, model: ir.Model, target: str, allowed: int) -> tuple[ir.Model | None, dict[str, Any] | None]:
    """Moves what the CPU must compute first out of `model`, in place, where the target asks for that, and returns it with the plan of the
    rest, where there is a table to make one from.

    Errors: CheckFailed where the rest falls into more than `allowed` partitions, or nodes of it fall out where one is allowed.
    """
    if target in BESIDE:
        return None, plan(model, target).summary()
    if target_of(component, target) not in HOSTED:
        return None, None
    host = split_host(model)
    if target not in WHOLE:
        return host, None
    made = plan(model, target)
    if len(made.partitions) > allowed or (allowed == 1 and made.taken < made.nodes):
        worst = made.summary()["faults"][0]
        raise CheckFailed(
            f"'{component}' falls into {len(made.partitions)} partitions on {target}, which takes {made.taken} of {made.nodes} nodes: "
            f"above all {worst['nodes']} {worst['operator']} ({worst['why']}). See 'python -m graph_passes.plan', or give "
            f"--allow-partitions {max(2, len(made.partitions))}"
        )
    return host, made.summary()
