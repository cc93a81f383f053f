"""Stack traces, doc strings, the exporter's notes and name -> nothing, and our name

Torch's exporter writes the traceback of every node into its metadata, with the paths of the machine that exported.
"""

from __future__ import annotations

import functools

import onnx_ir as ir

from graph_passes.step import Pass

PRODUCER = "handheld-diffusion"
NOTES = ("pkg.", "namespace")  # keys of exporters and rewriters; other notes on the whole model are its author's, and stay

Part = ir.Graph | ir.Function | ir.Node | ir.Value


def clear_metadata(model: ir.Model) -> int:
    """Returns how many parts of the model had something that went."""
    parts: list[Part] = []
    owners: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for owner in owners:
        parts += [owner, *owner.inputs, *owner.outputs]
        if isinstance(owner, ir.Graph):
            parts += owner.initializers.values()
        for node in owner:
            parts += [node, *node.outputs]
    cleared = 0
    for part in parts:
        cleared += _clear(part)
    notes = [key for key in model.metadata_props if key.startswith(NOTES)]
    for key in notes:
        del model.metadata_props[key]
    cleared += bool(notes or model.doc_string or (model.producer_name, model.producer_version) != (PRODUCER, None))
    model.producer_name, model.producer_version, model.doc_string = PRODUCER, None, None
    return cleared


def _clear(part: Part) -> bool:
    had = bool(part.metadata_props or part.doc_string)
    part.metadata_props.clear()
    part.doc_string = None
    tensor = part.const_value if isinstance(part, ir.Value) else None
    if isinstance(part, ir.Value) and tensor is not None and (tensor.metadata_props or tensor.doc_string):
        # the notes of a tensor that was read from a file cannot be changed: only its contents are passed on
        part.const_value = ir.LazyTensor(functools.partial(_same, tensor), tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)
        had = True
    return had


def _same(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor


CLEAR_METADATA = Pass("clear metadata", clear_metadata)
