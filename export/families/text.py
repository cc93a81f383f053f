"""CLIP text encoders (Radford et al. 2021) as graphs, with optimum's names for their outputs.

SD 1.x and 2.x read the last state of their one encoder; SDXL the penultimate state of each of its two (Podell et al. 2023, section 2.1),
and the pooled projection of the second.
"""

from __future__ import annotations

from typing import Any

import torch

from export.component import Component
from export.weights import Checkpoint

Axes = dict[str, dict[int, str]]
# Names of the axes as optimum gives them; its pipelines compute output shapes from these very strings.
TOKENS = {0: "batch_size", 1: "sequence_length"}


class TextEncoder(torch.nn.Module):
    """input_ids int64 [B, S] -> last_hidden_state [B, S, D], pooler_output [B, D]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(input_ids=input_ids, return_dict=True)
        return output.last_hidden_state, output.pooler_output


class TextEncoderWithStates(torch.nn.Module):
    """input_ids int64 [B, S] -> last_hidden_state [B, S, D], pooler_output [B, D], and N + 1 states [B, S, D] of N layers."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        return output.last_hidden_state, output.pooler_output, *output.hidden_states


class TextEncoderWithProjection(torch.nn.Module):
    """input_ids int64 [B, S] -> text_embeds [B, P], last_hidden_state [B, S, D], and N + 1 states [B, S, D] of N layers."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        return output.text_embeds, output.last_hidden_state, *output.hidden_states


def text_encoder(checkpoint: Checkpoint, batch: int) -> Component:
    """The encoder of SD 1.x and 2.x."""
    return _component(checkpoint, "text_encoder", TextEncoder, batch, ("last_hidden_state", "pooler_output"))


def text_encoder_with_states(checkpoint: Checkpoint, batch: int) -> Component:
    """SDXL's first encoder."""
    outputs = ("last_hidden_state", "pooler_output", *_states(checkpoint.configs["text_encoder"]))
    return _component(checkpoint, "text_encoder", TextEncoderWithStates, batch, outputs)


def text_encoder_2(checkpoint: Checkpoint, batch: int) -> Component:
    """SDXL's second encoder, the refiner's only one."""
    outputs = ("text_embeds", "last_hidden_state", *_states(checkpoint.configs["text_encoder_2"]))
    return _component(checkpoint, "text_encoder_2", TextEncoderWithProjection, batch, outputs)


def penultimate(config: dict[str, Any]) -> str:
    """The output that holds what the last layer of an encoder reads."""
    return f"hidden_states.{int(config['num_hidden_layers']) - 1}"


def _states(config: dict[str, Any]) -> list[str]:
    return [f"hidden_states.{index}" for index in range(int(config["num_hidden_layers"]) + 1)]


def _component(checkpoint: Checkpoint, name: str, wrapper: type[torch.nn.Module], batch: int, outputs: tuple[str, ...]) -> Component:
    config = checkpoint.configs[name]
    ids = torch.zeros(batch, int(config["max_position_embeddings"]), dtype=torch.int64)
    pooled = ("pooler_output", "text_embeds")
    axes: Axes = {"input_ids": TOKENS, **{output: {0: "batch_size"} if output in pooled else TOKENS for output in outputs}}
    return Component(name, wrapper(checkpoint.module(name)), {"input_ids": ids}, outputs, axes, config)
