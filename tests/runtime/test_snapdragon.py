"""The table of SoCs, and what is said of a name that is not in it."""

from __future__ import annotations

import re

import pytest

from runtime.errors import InputError
from runtime.snapdragon import DEFAULT, SOCS, soc, worth_emulating


def test_qualcomms_numbers() -> None:
    # QNN_SOC_MODEL_* and QNN_HTP_DEVICE_ARCH_* of the QNN SDK
    assert {(each.name, each.model, each.htp_arch) for each in SOCS} == {
        ("sm8450", 36, 69), ("sm8475", 42, 69), ("sm8550", 43, 73), ("sm8650", 57, 75), ("sm8750", 69, 79), ("sm8850", 87, 81),
    }  # fmt: skip
    assert soc("SM8650").title == "Snapdragon 8 Gen 3"
    assert soc(DEFAULT).htp_arch == 73


@pytest.mark.parametrize(
    ("name", "advice"),
    [("8550", "did you mean sm8550?"), ("kirin", "there are sm8450, sm8475, sm8550, sm8650, sm8750, sm8850")],
)
def test_another_name_gets_the_nearest(name: str, advice: str) -> None:
    sentence = f"'{name}' is no Snapdragon whose NPU computes in float16: {advice}"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        soc(name)


def test_the_emulator_is_not_asked_for_a_unet_in_full_size() -> None:
    assert worth_emulating(6_700_000_000)
    assert not worth_emulating(401_600_000_000)
