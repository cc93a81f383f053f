"""The weights of a graph that was traced from a checkpoint's outline: each becomes known when it is written, and forgotten after."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir
import torch

from export.weights import Checkpoint


def put_weights(model: ir.Model, outline: Checkpoint) -> None:
    """Gives every initializer that is a parameter of the outline's modules the checkpoint's tensor, as an `ir.LazyTensor`."""
    assert outline.empty is not None
    places = {tensor.data_ptr(): (component, key) for component, tensors in outline.empty.items() for key, tensor in tensors.items()}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        address = tensor.raw.data_ptr() if isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, torch.Tensor) else None
        if address in places:
            component, key = places[address]
            shape = ir.Shape(outline.shapes[component][key])
            value.const_value = ir.LazyTensor(partial(_tensor, outline, component, key), ir.DataType.FLOAT, shape, name=value.name)


def _tensor(checkpoint: Checkpoint, component: str, key: str) -> ir.Tensor:
    return ir.Tensor(checkpoint.array(component, key))
