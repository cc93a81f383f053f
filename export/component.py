"""A piece of a checkpoint that becomes one ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Component:
    """One graph to be: the module and everything that tracing, checking and packaging need to know of it.

    `module` takes the inputs of `example_inputs` as positional arguments, in that order, and returns a tensor or a tuple of tensors,
    one per name of `outputs`. Its parameters may be views of a mapped file: nothing here may write to them.
    `dynamic_axes` names the axes that stay free in a portable package: {input or output: {axis: name}}.
    `config` is written beside the graph as config.json.
    """

    name: str
    module: torch.nn.Module
    example_inputs: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    dynamic_axes: dict[str, dict[int, str]] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.module.parameters())


Parts = list[tuple[str, Callable[[], Component]]]  # components by name, each built when it is asked for
