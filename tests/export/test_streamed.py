"""Layers whose weights come and go: they compute what they would with all of them, and hold none when they are done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export import weights
from export.streamed import absent, stream
from export.weights import open_checkpoint

KEYS = ("0.weight", "1.weight")


@pytest.fixture
def layers() -> torch.nn.Module:
    """Two layers whose matrices are streamed: ones, and twos."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).requires_grad_(False)
    for layer in module:
        layer.bias.zero_()
        layer.weight = torch.nn.Parameter(absent((3, 3)), requires_grad=False)
    return stream(module, KEYS, lambda key: torch.full((3, 3), 1.0 + KEYS.index(key)))


def here(module: torch.nn.Module) -> list[bool]:
    return [bool(torch.isfinite(layer.weight).all()) for layer in module]


def test_one_layer_has_its_weights_at_a_time(layers: torch.nn.Module) -> None:
    seen: list[list[bool]] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: seen.append(here(layers)))
    assert torch.equal(layers(torch.ones(3)), torch.full((3,), 18.0))
    assert seen == [[True, False], [False, True]]
    assert here(layers) == [False, False]
    assert [layer.weight.untyped_storage().nbytes() for layer in layers] == [4, 4]  # one NaN that stands for all


def test_an_error_leaves_no_weights_behind(layers: torch.nn.Module) -> None:
    with pytest.raises(RuntimeError):
        layers(torch.ones(5))
    assert here(layers) == [False, False]


@pytest.mark.parametrize("stored", ["random", "float16", "bfloat16"])
def test_a_streamed_model_computes_what_it_does_with_its_weights_in_memory(stored: str, small_folder: Path, tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_folder
    if stored != "random":
        model = tmp_path / "model"
        for path in small_folder.rglob("*"):
            if path.is_file():
                (model / path.relative_to(small_folder)).parent.mkdir(parents=True, exist_ok=True)
                (model / path.relative_to(small_folder)).write_bytes(path.read_bytes())
        for path in model.rglob("*.safetensors"):
            save_file({key: tensor.to(getattr(torch, stored)) for key, tensor in load_file(path).items()}, path)
    checkpoint = open_checkpoint(str(model), stored if stored == "random" else None, tmp_path / "work")
    torch.manual_seed(0)
    ids, latents, states, pixels = torch.randint(600, (1, 77)), torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32), torch.randn(1, 3, 28, 28)

    def outputs() -> list[torch.Tensor]:
        text, unet, vae, checker = (checkpoint.module(name) for name in ("text_encoder", "unet", "vae", "safety_checker"))
        with torch.no_grad():
            return [text(ids).last_hidden_state, unet(latents, 501, states).sample, vae.decode(latents).sample,
                    vae.encode(pixels[..., :16, :16]).latent_dist.mean, checker.vision_model(pixels)[1]]

    held = outputs()
    monkeypatch.setattr(weights, "HELD", 100)
    assert sum(bool(tensor.isnan().any()) for tensor in checkpoint.module("unet").parameters()) > 50
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(outputs(), held, strict=True))
    assert not [*(tmp_path / "work").rglob("*.safetensors")]
