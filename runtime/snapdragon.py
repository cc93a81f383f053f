"""The Snapdragon SoCs whose NPU (HTP) computes in float16, by the names that Qualcomm gives them.

`model` is Qualcomm's number of the SoC (QNN_SOC_MODEL_* of the QNN SDK's QnnTypes.h), `htp_arch` the version of its HTP. Published, each
with both numbers, in ExecuTorch (backends/qualcomm/serialization/qc_schema.py) and LiteRT (vendors/qualcomm/core/schema/soc_table.cc).
HTP v68 and before have integers only: compiled for them, every node of a float model stays on the CPU.
"""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass

from runtime.errors import InputError


@dataclass(frozen=True)
class Soc:
    """A system on a chip. `title` is the name it is sold under."""

    name: str
    title: str
    model: int
    htp_arch: int


SOCS = (
    Soc("sm8450", "Snapdragon 8 Gen 1", 36, 69),
    Soc("sm8475", "Snapdragon 8+ Gen 1", 42, 69),
    Soc("sm8550", "Snapdragon 8 Gen 2", 43, 73),
    Soc("sm8650", "Snapdragon 8 Gen 3", 57, 75),
    Soc("sm8750", "Snapdragon 8 Elite", 69, 79),
    Soc("sm8850", "Snapdragon 8 Elite Gen 5", 87, 81),
)
DEFAULT = "sm8550"  # the Galaxy S23's
MOST_EMULATED_MACS = 10e9  # the emulator does 0.2 to 0.5 billion in a second; the U-Net of SD 1.4 has 402, its text encoder 6.7


def soc(name: str) -> Soc:
    """The SoC of that name. Errors: InputError for another, with the nearest ones."""
    found = next((each for each in SOCS if each.name == name.lower()), None)
    if found is None:
        known = [each.name for each in SOCS]
        near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.8)
        advice = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"'{name}' is no Snapdragon whose NPU computes in float16: {advice}")
    return found


def emulated() -> bool:
    """Whether this machine has QNN's emulator of the NPU in the NPU's place: it computes the same numbers, in a time that means nothing."""
    return platform.machine() in ("x86_64", "AMD64")


def worth_emulating(macs: int) -> bool:
    """Whether a graph of that many multiply-accumulates takes the emulator less than a minute or so."""
    return macs <= MOST_EMULATED_MACS
