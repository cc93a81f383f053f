"""What the manifest says of a model before anybody has said anything: steps, guidance, sizes and conditions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export import aliases
from export.architecture import REQUIRED
from export.defaults import pipeline
from export.families import FAMILIES
from export.weights import open_checkpoint
from runtime.errors import InputError

# alias: family, side, steps, guidance, strength, scheduler, numbers of time_ids
PRESETS = {
    "tiny": ("sd", 64, 20, 4.0, 0.8, "ddim", 0),
    "sd14": ("sd", 512, 20, 7.5, 0.8, "pndm", 0),
    "sd21": ("sd", 768, 20, 7.5, 0.8, "ddim", 0),
    "sd-turbo": ("sd", 512, 1, 0.0, 0.5, "euler", 0),
    "lcm": ("sd", 512, 4, 8.5, 0.8, "lcm", 0),
    "sdxl": ("sdxl", 1024, 30, 5.0, 0.3, "euler", 6),
    "sdxl-turbo": ("sdxl", 512, 1, 0.0, 0.5, "euler_ancestral", 6),
    "sdxl-refiner": ("sdxl-refiner", 1024, 30, 5.0, 0.3, "euler", 5),
    "tiny-lcm": ("sd", 64, 4, 8.5, 0.8, "lcm", 0),
    "tiny-sdxl": ("sdxl", 64, 30, 5.0, 0.3, "euler", 6),
    "tiny-sdxl-turbo": ("sdxl", 64, 1, 0.0, 0.5, "euler_ancestral", 6),
    "tiny-sdxl-refiner": ("sdxl-refiner", 64, 30, 5.0, 0.3, "euler", 5),
}
STABLE_DIFFUSION = [{"component": "text_encoder", "tokenizer": "tokenizer", "embeddings": "last_hidden_state", "pooled": ""}]


@pytest.mark.parametrize("alias", PRESETS)
def test_every_alias_has_the_settings_of_its_kind(alias: str, tmp_path: Path) -> None:
    family, side, steps, guidance, strength, scheduler, time_ids = PRESETS[alias]
    made = pipeline(open_checkpoint(alias, "random", tmp_path), None, None, 1, dynamic=True)
    assert (made["family"], made["height"], made["width"], made["batch"]) == (family, side, side, 0)
    assert (made["steps"], made["guidance"], made["strength"], made["scheduler"]) == (steps, guidance, strength, scheduler)
    assert made["time_ids"] == time_ids
    if alias != "tiny":  # which measured its own factor, and has diffusers' default for the other
        assert made["scaling_factor"] == (0.18215 if family == "sd" else 0.13025)
        assert made["force_upcast"] is (family != "sd")
    assert made["force_zeros_for_empty_prompt"] is (family == "sdxl")
    assert (made.get("aesthetic_score"), made.get("negative_aesthetic_score")) == ((6.0, 2.5) if time_ids == 5 else (None, None))


def test_the_text_encoders_stand_in_the_order_of_the_u_nets_input(tmp_path: Path) -> None:
    def encoders(alias: str) -> object:
        return pipeline(open_checkpoint(alias, "random", tmp_path / alias), None, None, 1, dynamic=True)["text_encoders"]

    first = {"component": "text_encoder", "tokenizer": "tokenizer", "embeddings": "hidden_states.11", "pooled": ""}
    second = {"component": "text_encoder_2", "tokenizer": "tokenizer_2", "embeddings": "hidden_states.31", "pooled": "text_embeds"}
    assert encoders("sdxl") == encoders("sdxl-turbo") == [first, second]
    assert encoders("sdxl-refiner") == [second]
    assert encoders("sd14") == encoders("lcm") == STABLE_DIFFUSION


def test_trailing_timesteps_of_a_schedule_that_ends_at_zero_signal_are_no_sign_of_few_steps(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("tiny-sd21", None, tmp_path)
    for changes, steps in (({"timestep_spacing": "trailing"}, 1), ({"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, 20)):
        changed = replace(checkpoint, scheduler={**checkpoint.scheduler, **changes})
        assert pipeline(changed, None, None, 1, dynamic=True)["steps"] == steps


@pytest.mark.parametrize(("height", "width", "sentence"), [
    (1020, None, "a height of 1020 is not possible: it must be a positive multiple of 8"),
    (None, 0, "a width of 0 is not possible: it must be a positive multiple of 8"),
])
def test_a_size_that_is_not_possible(height: int | None, width: int | None, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        pipeline(open_checkpoint("tiny-sdxl", None, tmp_path), height, width, 1, dynamic=False)


def test_every_family_is_in_every_list() -> None:
    assert set(FAMILIES) == set(REQUIRED) == set(aliases.FAMILIES)
