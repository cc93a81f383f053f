"""Component -> ir.Model: the only call of torch.onnx.export."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
import torch._dynamo.config
from onnxscript import opset18
from onnxscript.onnx_types import TensorType
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode

from export.component import Component
from runtime.errors import CheckFailed

op: Any = opset18  # ONNX spelled as Python: its types are not Python's
# One opset for every package. At 20 the exporter writes GroupNorm as InstanceNormalization between reshapes, which every runtime
# has a kernel for; at 21 as GroupNormalization, which ONNX Runtime's CPU provider expands into a dozen primitives.
OPSET = 20
# What torch.export and the exporter raise for a module that they have no graph for; they share no class.
CANNOT = (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException, GuardOnDataDependentSymNode, ConstraintViolationError)


def trace(component: Component, dynamic: bool) -> ir.Model:
    """Traces a component with torch.export and lowers it to ONNX; the initializers are views of the module's parameters.

    With `dynamic` the axes in `component.dynamic_axes` stay free and carry those names. Nothing of a parameter is read or copied.
    Errors: CheckFailed where torch cannot trace the module.
    """
    shapes = {name: dict.fromkeys(component.dynamic_axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in component.example_inputs}
    try:
        with torch.no_grad(), _quiet(), torch._dynamo.config.patch(fake_tensor_cache_enabled=not dynamic):
            # a hit in the cache of fake tensors costs a round of symbolic algebra where axes are free: 0.4 of the time without it
            exported = torch.export.export(component.module, tuple(component.example_inputs.values()), strict=False,
                                           dynamic_shapes=tuple(shapes.values()) if dynamic else None)
            program = _lowered(exported, component)
    except CANNOT as error:
        raise CheckFailed(f"'{component.name}' cannot be traced: {str(error).splitlines()[0]}") from error
    model = program.model
    if dynamic:
        _name_axes(model, component)
    model.graph.name = component.name
    return model


def _lowered(exported: torch.export.ExportedProgram, component: Component) -> torch.onnx.ONNXProgram:
    """Translates a traced module to ONNX.

    The exporter first traces the module a second time, to decompose what it has no translation for: as much work as the first time, for
    two ways to write a cast. With CASTS nothing is left to decompose in the models of this project, and where another one needs
    it, it has the second trace after all.
    """
    decompose = exported.run_decompositions
    for steps in (lambda _: exported, decompose):
        object.__setattr__(exported, "run_decompositions", steps)
        try:
            program = torch.onnx.export(exported, dynamo=True, opset_version=OPSET, verbose=False, optimize=False,
                                        input_names=list(component.example_inputs), output_names=list(component.outputs),
                                        custom_translation_table=CASTS)
        except torch.onnx.OnnxExporterError:
            if steps is decompose:
                raise
            continue
        break
    assert program is not None
    return program


def _cast(self: TensorType, dtype: int = -1, non_blocking: bool = False, copy: bool = False, memory_format: str = "") -> TensorType:
    return op.Cast(self, to=dtype)


def _cast_with_layout(
    self: TensorType, dtype: int = -1, layout: str = "", device: str = "", pin_memory: bool = False, non_blocking: bool = False,
    copy: bool = False, memory_format: str = "",
) -> TensorType:
    return op.Identity(self) if dtype == -1 else op.Cast(self, to=dtype)


def _cast_on_device(
    self: TensorType, device: str, dtype: int = -1, non_blocking: bool = False, copy: bool = False, memory_format: str = ""
) -> TensorType:
    return op.Cast(self, to=dtype)


# What the exporter's own table lacks; the parameters are those of the operators' schemas, and all but the type say nothing in a graph.
CASTS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.to.dtype: _cast, torch.ops.aten.to.dtype_layout: _cast_with_layout,
                                                        torch.ops.aten.to.device: _cast_on_device}


def _name_axes(model: ir.Model, component: Component) -> None:
    """Gives the free axes of inputs and outputs the component's names, and every symbol of torch's inside the name it stands for."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in component.dynamic_axes.get(str(value.name), {}).items():
            assert value.shape is not None
            names.setdefault(str(value.shape[axis]), name)
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b") if names else re.compile(r"(?!)")
    for node in model.graph.all_nodes():
        for value in node.outputs:
            _rename(value, symbol, names)
    for value in model.graph.inputs:
        _rename(value, symbol, names)
    for value in (*model.graph.inputs, *model.graph.outputs):
        for axis, name in component.dynamic_axes.get(str(value.name), {}).items():
            shape = list(value.shape or ())
            shape[axis] = ir.SymbolicDim(name)
            value.shape = ir.Shape(shape)


def _rename(value: ir.Value, symbol: re.Pattern[str], names: dict[str, str]) -> None:
    if value.shape is None or value.shape.is_static():
        return
    value.shape = ir.Shape([
        dim if isinstance(dim, int) or dim.value is None else ir.SymbolicDim(symbol.sub(lambda match: names[match[0]], dim.value))
        for dim in value.shape
    ])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's remarks about packages that no model here needs, and about its own workings, from the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx._internal.exporter._registration", "torch.utils._sympy.interp")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
