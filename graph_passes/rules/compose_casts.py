"""Cast(Cast(x: T, to=U), to=V) -> Cast(x, to=V), where U holds every value of T"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit
from graph_passes.values import integer, producer

_I = ir.DataType
_FLOATS = {_I.FLOAT16, _I.BFLOAT16, _I.FLOAT, _I.DOUBLE}
# Types that hold every value of the key exactly
WIDER = {
    _I.BOOL: {_I.INT8, _I.UINT8, _I.INT16, _I.UINT16, _I.INT32, _I.UINT32, _I.INT64, _I.UINT64} | _FLOATS,
    _I.INT8: {_I.INT16, _I.INT32, _I.INT64} | _FLOATS,
    _I.UINT8: {_I.INT16, _I.UINT16, _I.INT32, _I.UINT32, _I.INT64, _I.UINT64} | _FLOATS,
    _I.INT16: {_I.INT32, _I.INT64, _I.FLOAT, _I.DOUBLE},
    _I.UINT16: {_I.INT32, _I.UINT32, _I.INT64, _I.UINT64, _I.FLOAT, _I.DOUBLE},
    _I.INT32: {_I.INT64, _I.DOUBLE},
    _I.UINT32: {_I.INT64, _I.UINT64, _I.DOUBLE},
    _I.FLOAT16: {_I.FLOAT, _I.DOUBLE},
    _I.BFLOAT16: {_I.FLOAT, _I.DOUBLE},
    _I.FLOAT: {_I.DOUBLE},
}


def rewrite(node: ir.Node) -> ir.Value:
    inner = producer(node.inputs[0], "Cast")
    if inner is None:
        raise Refused("the input is no cast")
    value = inner.inputs[0]
    if value is None or value.dtype is None:
        raise Refused("the type of the inner cast's input is not known")
    between = ir.DataType(integer(inner, "to", 0))
    if between != value.dtype and between not in WIDER.get(value.dtype, set()):
        raise Refused("the inner cast loses something")
    return emit(node, "Cast", [value], {"to": integer(node, "to", 0)})


COMPOSE_CASTS = Rule("compose casts", ("Cast",), rewrite)
