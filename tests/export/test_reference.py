"""The oracle itself, held against float64 where torch's float32 is not good enough to judge anybody."""

from __future__ import annotations

import numpy as np
import torch

from export.component import Component
from export.reference import component_outputs
from runtime.compare import snr_db


class ChannelsLast(torch.nn.Module):
    """A norm over groups of half a million numbers, of a picture with its channels last in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(2, 4)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        normalized: torch.Tensor = self.norm(sample.to(memory_format=torch.channels_last))
        return normalized


def test_norms_over_large_pictures_keep_their_digits_whatever_the_memory_format() -> None:
    module = ChannelsLast()
    sample = np.random.default_rng(0).normal(1, 1, (2, 4, 512, 512)).astype(np.float32)
    groups = sample.astype(np.float64).reshape(2, 2, -1)
    expected = ((groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + module.norm.eps)).reshape(sample.shape)
    component = Component("norm", module, {"sample": torch.from_numpy(sample)}, ("normalized",))
    # a value is rounded at the difference, the scale and the product, by 2^-24 of it at most each: 135 dB at the worst
    assert snr_db(expected, component_outputs(component, {"sample": sample})["normalized"]) > 130
    with torch.no_grad():
        by_itself = module(torch.from_numpy(sample)).numpy()
    assert snr_db(expected, by_itself) < 110, "torch has learned it: contiguous_norms can go"
