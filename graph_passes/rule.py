"""A rewrite rule: one node, seen with what feeds it, becomes another value. And how rules are applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graph_passes.step import Pass
from graph_passes.values import Dimension, add_initializer, dimensions, is_standard

Site = TypeVar("Site")


class Refused(Exception):
    """Why a rule leaves a node as it is: one sentence."""


@dataclass(frozen=True)
class Rule:
    """`rewrite` gets a node whose type is in `op_types` and returns the value that takes the place of its first output.

    It raises Refused, before it adds anything to the graph, where the equation does not hold.
    """

    name: str
    op_types: tuple[str, ...]
    rewrite: Callable[[ir.Node], ir.Value]

    def as_pass(self) -> Pass:
        return Pass(self.name, lambda model: apply(self, model))


def apply(rule: Rule, model: ir.Model) -> int:
    """Tries the rule once on every node of the graph and its subgraphs, inputs before outputs. Returns how many nodes it replaced."""
    applied = 0
    for graph in list(model.graphs()):
        for node in graph:
            if not is_standard(node, *rule.op_types):
                continue
            try:
                replace(node, rule.rewrite(node))
            except Refused:
                continue
            applied += 1
    return applied


def fusion(
    name: str, is_candidate: Callable[[ir.Node], bool], find: Callable[[ir.Node], Site], fuse: Callable[[Site, ir.Node], None]
) -> Pass:
    """The pass that makes one node of every site of an operator, and tells which sites it left.

    `find` gives the site around a candidate, or raises Refused with the reason; `fuse` puts the operator in its place.
    """

    def run(model: ir.Model) -> int:
        fused = 0
        for graph in list(model.graphs()):
            for node in graph:
                if not is_candidate(node):
                    continue
                try:
                    fuse(find(node), node)
                except Refused:
                    continue
                fused += 1
        if fused:
            RemoveUnusedNodesPass()(model)
        return fused

    return Pass(name, run, lambda model: refusals(model, is_candidate, find))


def refusals(model: ir.Model, is_candidate: Callable[[ir.Node], bool], find: Callable[[ir.Node], object]) -> list[str]:
    """A sentence for each candidate that `find` refuses, and why."""
    sentences = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if is_candidate(node):
            try:
                find(node)
            except Refused as reason:
                sentences.append(f"{node.op_type} '{node.name}': {reason}")
    return sentences


def replace(node: ir.Node, value: ir.Value) -> None:
    """Puts `value` in the place of the node's first output and removes the node. A name of the graph's interface stays with its place."""
    output, graph = node.outputs[0], node.graph
    assert graph is not None
    if any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):
        raise Refused("another output of the node is used")
    if output.is_graph_output():
        source = value.producer()
        if source is None or source.graph is not graph or value.is_graph_output():
            raise Refused("an output of the graph needs a node of its own")
    if output.is_graph_output():
        value.type, value.shape = output.type, output.shape
        named = output.name
    else:
        adopt(value, output)
        named = None
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if named is not None:
        value.name = named


def adopt(value: ir.Value, other: ir.Value) -> None:
    """Gives `value` what is known of the type and shape of `other`, which is equal to it. What the caller of a graph sees is left alone."""
    if value.is_graph_input() or value.is_graph_output() or value.is_initializer():
        return
    value.type = value.type or other.type
    mine, theirs = dimensions(value), dimensions(other)
    if mine is None:
        value.shape = other.shape.copy() if other.shape is not None else None
    elif theirs is not None and len(mine) == len(theirs):
        value.shape = ir.Shape([_clearer(first, second) for first, second in zip(mine, theirs, strict=True)])


def _clearer(first: Dimension, second: Dimension) -> Dimension:
    """Of two descriptions of one size the one that says more: a number, then a name."""
    return second if first is None or (isinstance(first, str) and isinstance(second, int)) else first


def emit(
    before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None, suffix: str = ""
) -> ir.Value:
    """Adds a standard node in front of `before` and returns its output.

    It takes over the name of `before`, and with it its module; a rule that makes two nodes tells them apart by a suffix.
    """
    node = ir.node(op_type, inputs, attributes, name=f"{before.name or op_type}{suffix}", metadata_props=dict(before.metadata_props))
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return node.outputs[0]


def emit_constant(before: ir.Node, array: np.ndarray) -> ir.Value:
    """Adds a small constant for a node that takes the place of `before`, and returns it."""
    assert isinstance(before.graph, ir.Graph)
    return add_initializer(before.graph, ir.tensor(array), f"{before.name or before.op_type}_constant")
