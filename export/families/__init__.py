"""The model families: one module each, and the table that finds a checkpoint's."""

from __future__ import annotations

from typing import Any, Protocol

from export.component import Parts
from export.families import sd, sdxl
from export.weights import Checkpoint


class Family(Protocol):
    """What the export asks of a family's module."""

    def components(self, checkpoint: Checkpoint, size: tuple[int, int] | None, batch: int) -> Parts:
        """The graphs to be, in the order of their use; `size` in pixels, None for a dynamic package."""

    def scheduler_config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """scheduler_config.json as diffusers' pipeline of this family uses it."""

    def pipeline(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The manifest's keys for the conditions: text_encoders, time_ids, force_zeros_for_empty_prompt."""

    def index(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """model_index.json without versions and scheduler."""


FAMILIES: dict[str, Family] = {"sd": sd, "sdxl": sdxl, "sdxl-refiner": sdxl}


def family_of(checkpoint: Checkpoint) -> Family:
    """The module of a checkpoint's family."""
    return FAMILIES[checkpoint.family]
