"""The custom ops of the domain `handheld`: one module each, the list of them here."""

from __future__ import annotations

from onnxscript import OnnxFunction

from graph_passes.ops.group_norm import GroupNorm, GroupNormSilu

BODIES: dict[str, OnnxFunction] = {body.name: body for body in (GroupNorm, GroupNormSilu)}
