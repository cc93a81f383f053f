from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_model
import torch

from export.aliases import ALIASES
from export.architecture import of_alias
from export.random_weights import Spread, fill_random, spreads
from export.safetensors_file import BLOCK
from export.skeletons import skeleton
from export.weights import Checkpoint, open_checkpoint

UNIT = Spread(0.0, 1.0)

# millions of parameters of the published weights
PUBLISHED = {
    "sd14": {"text_encoder": 123, "unet": 859.5, "vae": 49.5 + 34.2},
    "sd15": {"text_encoder": 123, "unet": 859.5, "vae": 49.5 + 34.2},
    "sd21": {"text_encoder": 340, "unet": 865.9, "vae": 49.5 + 34.2},
    "sd-turbo": {"text_encoder": 340, "unet": 865.9, "vae": 49.5 + 34.2},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_architectures_have_the_published_numbers_of_parameters(name: str) -> None:
    alias = next(alias for alias in ALIASES if alias.name == name)
    architecture = of_alias(alias.name, alias.family, alias.configs)
    for component, millions in PUBLISHED[name].items():
        counted = sum(p.numel() for p in skeleton(component, architecture.configs[component]).parameters()) / 1e6
        digits = 0 if component == "text_encoder" else 1
        # the table gives one decimal of encoder and decoder apart: their sum is known to a tenth
        assert counted == pytest.approx(millions, abs=0.5 * 10**-digits + (0.05 if component == "vae" else 0)), component
    assert ("safety_checker" in architecture.configs) == (name in ("sd14", "sd15"))


def test_tiny_sd21_has_the_structure_of_sd21() -> None:
    small, large = of_alias("tiny-sd21", "sd", "tiny-sd21.json"), of_alias("sd21", "sd", "sd21.json")
    assert small.scheduler == large.scheduler
    assert small.scheduler["prediction_type"] == "v_prediction"
    assert small.pad_tokens == large.pad_tokens == {"tokenizer": "!"}
    for component, config in large.configs.items():
        names = [{name for name, _ in skeleton(component, configs).named_modules() if "encoder.layers" not in name}
                 for configs in (config, small.configs[component])]
        assert names[0] == names[1]
    for key in ("use_linear_projection", "upcast_attention", "layers_per_block", "down_block_types", "up_block_types"):
        assert small.configs["unet"][key] == large.configs["unet"][key]
    assert isinstance(small.configs["unet"]["attention_head_dim"], list)
    assert small.configs["text_encoder"]["hidden_act"] == "gelu"


def draw(seed: int, component: str, name: str, count: int = 1000, spread: Spread = UNIT) -> np.ndarray:
    made = np.empty(count, np.float32)
    fill_random(made, seed, component, name, spread)
    return made


def test_numbers_depend_on_seed_component_and_name_and_on_nothing_else() -> None:
    first = draw(0, "unet", "conv_in.weight")
    assert np.array_equal(first, draw(0, "unet", "conv_in.weight"))
    for other in (draw(1, "unet", "conv_in.weight"), draw(0, "vae", "conv_in.weight"), draw(0, "unet", "conv_in.bias")):
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / np.sqrt(first.size)  # five standard deviations of chance


def test_the_first_numbers_stay_what_they_are() -> None:
    """A seed in a manifest means the same weights in every version: these were drawn when the format was made."""
    assert draw(7, "unet", "conv_in.weight", 3).tolist() == [-0.8251331448554993, -0.16227032244205475, 0.8602938055992126]


def test_mean_and_deviation_are_those_asked_for() -> None:
    count = 2 * BLOCK + 5
    numbers = draw(0, "unet", "x", count, Spread(1.0, 0.1)).astype(np.float64)
    assert numbers.size == count
    assert numbers.mean() == pytest.approx(1.0, abs=5 * 0.1 / np.sqrt(count))
    # the variance of a uniform sample's variance: (kurtosis 1.8 - 1) sigma^4 / n
    assert numbers.var() == pytest.approx(0.01, abs=5 * 0.01 * np.sqrt(0.8 / count))


def test_every_parameter_has_a_distribution_and_none_is_neutral() -> None:
    module = small_model.unet()
    distributions = spreads(module)
    assert distributions.keys() == module.state_dict().keys()
    for name, spread in distributions.items():
        numbers = draw(0, "unet", name, spread=spread)
        assert numbers.std() > 0, name
        if name.endswith("bias"):
            assert np.abs(numbers).max() > 0.01, name


def test_branches_of_a_stack_add_as_much_as_one_together() -> None:
    """Else a rounding of the input grows from transformer to transformer."""
    flat, deep = (spreads(small_model.unet(transformer_layers_per_block=depth)) for depth in (1, 4))
    block = "mid_block.attentions.0.transformer_blocks"
    for branch, gain in (("attn1.to_out.0", 0.7), ("attn2.to_out.0", 2.0), ("ff.net.2", 0.7)):
        fan_in = 128 if branch == "ff.net.2" else 32
        assert flat[f"{block}.0.{branch}.weight"].deviation == pytest.approx(gain / np.sqrt(fan_in))
        assert deep[f"{block}.3.{branch}.weight"].deviation == pytest.approx(gain / np.sqrt(4 * fan_in))
    others = [name for name in flat if not name.endswith(("to_out.0.weight", "ff.net.2.weight"))]
    assert all(flat[name] == deep[name] for name in others)


@pytest.fixture
def made(small_is_tiny: Path, tmp_path: Path) -> Checkpoint:
    return open_checkpoint("tiny-sd21", "random:5", tmp_path)


def test_random_models_compute_something_that_depends_on_all_inputs(made: Checkpoint) -> None:
    torch.manual_seed(0)
    text, unet, vae = (made.module(name) for name in ("text_encoder", "unet", "vae"))
    with torch.no_grad():
        prompt = torch.full((2, 77), 0)
        prompt[0, :5] = torch.tensor([511, 40, 80, 12, 512])
        prompt[1, :2] = torch.tensor([511, 512])
        cond, uncond = text(prompt).last_hidden_state.split(1)
        assert 0.5 < cond.std() < 2
        latents = torch.randn(1, 4, 16, 16)
        noise = unet(latents, 801, cond).sample
        assert 0.5 < noise.std() < 2
        assert (noise - unet(latents, 801, uncond).sample).std() > 0.1
        assert (noise - unet(latents, 401, cond).sample).std() > 0.1
        picture = vae.decode(torch.randn(1, 4, 16, 16) / vae.config.scaling_factor).sample
        assert picture.std() > 0.1  # not flat
        assert (picture.abs() > 1).float().mean() < 0.1  # not saturated
        posterior = vae.encode(picture).latent_dist
        assert posterior.mean.std() > 0.1
        assert posterior.logvar.abs().max() < 20


def test_a_random_safety_checker_flags_nothing(small_is_tiny: Path, tmp_path: Path) -> None:
    checker = open_checkpoint("tiny", "random:1", tmp_path).module("safety_checker")
    torch.manual_seed(0)
    pictures = np.ones((4, 8, 8, 3), dtype=np.float32)
    kept, flagged = checker(torch.randn(4, 3, 28, 28), pictures)
    assert flagged == [False] * 4
    assert kept.min() == 1
