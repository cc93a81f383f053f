"""A module whose large weights are in memory only while the layer that has them runs: no second copy of a checkpoint, on no disk.

What is stored in half precision, or is a function of a seed, becomes float32 when its layer begins and is dropped when it ends. So a model
of any size computes in float32 with the memory of its largest layer, and each run makes its weights anew: seconds where layers take
minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch

# Elements of a tensor that is held: all tensors up to here are one part in a hundred of a U-Net, and what is read outside of its layer's
# run (a dtype, a norm's weight) is among them.
HELD = 1 << 18
# What stands in the place of the others while they are away: who reads it sees it
ABSENT = torch.full((), float("nan"))


def absent(shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 tensor of NaN without memory of its own."""
    return ABSENT.expand(shape)


def stream(module: torch.nn.Module, keys: Collection[str], weight: Callable[[str], torch.Tensor]) -> torch.nn.Module:
    """Has the parameters `keys` of a module made by `weight(key)` when their layers begin, and dropped when they end, also by an error."""
    for path, layer in module.named_modules():
        names = [name for name, _ in layer.named_parameters(recurse=False)]
        found = {name: key for name in names if (key := f"{path}.{name}".lstrip(".")) in keys}
        if found:
            layer.register_forward_pre_hook(partial(_fetch, found, weight))
            layer.register_forward_hook(partial(_drop, tuple(found)), always_call=True)
    return module


def _fetch(keys: dict[str, str], weight: Callable[[str], torch.Tensor], layer: torch.nn.Module, _: Any) -> None:
    for name, key in keys.items():
        setattr(layer, name, torch.nn.Parameter(weight(key), requires_grad=False))


def _drop(names: tuple[str, ...], layer: torch.nn.Module, *_: Any) -> None:
    for name in names:
        setattr(layer, name, torch.nn.Parameter(absent(layer.get_parameter(name).shape), requires_grad=False))
