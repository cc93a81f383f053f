"""Dynamic dimensions -> numbers: input shapes are set, everything that follows from them is inferred and folded"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graph_passes.errors import GraphError
from graph_passes.passes.constants import fold_constants
from graph_passes.passes.shapes import infer_shapes, share_sizes
from graph_passes.step import Pass
from graph_passes.values import dimensions


def static_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Pass:
    """A pass that gives the inputs in `shapes` these shapes, and other inputs the sizes of the dimensions that they share by name.

    Returns how many dimensions of inputs became numbers, plus the nodes that were folded because of it.
    Errors: GraphError where an input is unknown or a shape contradicts the graph or another shape.
    """
    return Pass("fix static shapes", lambda model: _fix(model, shapes))


def _fix(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> int:
    sizes = _sizes_by_name(model, shapes)
    fixed = 0
    for value in model.graph.inputs:
        old = dimensions(value)
        if old is None:
            new: tuple[int | str | None, ...] | None = shapes.get(value.name or "")
        else:
            given = shapes.get(value.name or "", old)
            new = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in given)
        if new is not None and new != old:
            fixed += sum(isinstance(size, int) for size in new) - sum(isinstance(size, int) for size in old or ())
            value.shape = ir.Shape(new)
    if not fixed:
        return 0
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for output in node.outputs:
            known = dimensions(output)
            # what was known in names is inferred anew in numbers; the sizes of the graph's outputs keep their rank
            if known is not None and any(not isinstance(size, int) for size in known):
                output.shape = ir.Shape([sizes.get(size) if isinstance(size, str) else size for size in known])
    folded = 0
    while True:
        infer_shapes(model)
        step = share_sizes(model) + fold_constants(model)
        folded += step
        if not step:
            return fixed + folded


def _sizes_by_name(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The size of each named dimension."""
    inputs = {value.name or "": value for value in model.graph.inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise GraphError(f"The graph has no input {name!r}. Its inputs are {', '.join(inputs)}.")
        old = dimensions(inputs[name])
        if old is not None and len(old) != len(shape):
            raise GraphError(f"Input {name!r} has {len(old)} dimensions, not {len(shape)}.")
        if any(size < 1 for size in shape):
            raise GraphError(f"A shape of input {name!r} needs positive sizes, not {_text(shape)}.")
        for axis, size in enumerate(shape):
            before = old[axis] if old is not None else None
            if isinstance(before, int) and before != size:
                raise GraphError(f"Axis {axis} of input {name!r} is {before} in the graph and cannot become {size}.")
            if isinstance(before, str) and sizes.setdefault(before, size) != size:
                raise GraphError(f"Input {name!r} makes {before} {size}, but another input makes it {sizes[before]}.")
    return sizes


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


def parse_shapes(texts: tuple[str, ...], option: str = "--static") -> dict[str, tuple[int, ...]]:
    """`name=2x4x64x64` -> {name: (2, 4, 64, 64)}. Errors: GraphError where a text has another form."""
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split("x"))
        except ValueError:
            name = ""
        if not name:
            raise GraphError(f"{option} takes an input and its shape, such as sample=2x4x64x64, not {text!r}.")
    return shapes
