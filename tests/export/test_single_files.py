"""Checkpoints of one file: their kind is seen from their shapes, and their modules are those of the folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import small_model
import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from folders import copy
from safetensors.torch import save_file

from export import ldm
from export.weights import open_checkpoint
from runtime.errors import InputError, Unavailable


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_single_file_gives_the_same_modules(small_folder: Path, tmp_path: Path, version: int, dtype: torch.dtype) -> None:
    unet = small_model.unet(20, use_linear_projection=version == 2)
    parts = {"text_encoder": small_model.text_encoder(22), "unet": unet, "vae": small_model.vae(21)}
    folder = small_model.save(tmp_path / "model", parts)
    file = small_model.save_ldm(tmp_path / "single.safetensors", parts, version == 2, dtype)
    checkpoint = open_checkpoint(str(folder), str(file), tmp_path / "work")
    for name, module in parts.items():
        halved = {key: tensor.to(dtype).float() for key, tensor in module.state_dict().items()}
        made = checkpoint.module(name).state_dict()
        assert made.keys() == halved.keys()
        assert all(torch.equal(made[key], halved[key]) for key in made), name
    assert checkpoint.provenance()["sha256"]["single.safetensors"] == small_model.sha256_of(file)


def test_the_open_clip_text_encoder_is_converted_as_diffusers_does(parts: dict) -> None:
    tensors = small_model.to_ldm(*(parts[name].state_dict() for name in ("unet", "vae", "text_encoder")), open_clip=True)
    layers = parts["text_encoder"].config.num_hidden_layers
    ours = ldm.component("text_encoder", tensors, {"num_hidden_layers": layers})
    converted = convert_open_clip_checkpoint(parts["text_encoder"], tensors)
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in converted.items()}
    # diffusers knows the unused last block by the number that it has in the published file
    unused = {name for name in theirs if name.startswith(f"encoder.layers.{layers}.")} | {"text_projection.weight"}
    assert ours.keys() == theirs.keys() - unused
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def published_shapes(tmp_path: Path, cross: int, channels: int, steps: int | None = None) -> dict[str, torch.Tensor]:
    """What tells the kinds of a single file apart: a few of its tensors."""
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, channels, 3, 3),
               "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, cross),
               "first_stage_model.encoder.conv_in.bias": torch.zeros(128), "cond_stage_model.x": torch.zeros(1)}
    return tensors | ({"global_step": torch.tensor(steps)} if steps is not None else {})


@pytest.mark.parametrize(("cross", "channels", "steps", "prediction", "size"), [
    (768, 4, None, None, 64), (768, 9, None, None, 64), (1024, 4, None, "v_prediction", 96), (1024, 4, 140_000, "v_prediction", 96),
    (1024, 4, 875_000, "epsilon", 64), (1024, 9, None, "epsilon", 64)])
def test_the_kind_of_a_single_file_is_seen_from_its_shapes(tmp_path: Path, cross: int, channels: int, steps: int | None,
                                                           prediction: str | None, size: int) -> None:
    found = ldm.architecture(published_shapes(tmp_path, cross, channels, steps), tmp_path / "x.safetensors")
    assert found.configs["unet"]["cross_attention_dim"] == cross
    assert found.configs["unet"]["in_channels"] == channels
    assert found.configs["unet"]["sample_size"] == size
    assert found.scheduler.get("prediction_type") == prediction
    assert found.configs["text_encoder"]["num_hidden_layers"] == (12 if cross == 768 else 23)


def test_a_single_file_of_another_kind_is_named(tmp_path: Path) -> None:
    save_file(published_shapes(tmp_path, 768, 8), tmp_path / "edit.safetensors")
    with pytest.raises(InputError, match=r"is a checkpoint of the kind 'instruct-pix2pix'; this version takes single files of Stable"):
        open_checkpoint(str(tmp_path / "edit.safetensors"), None, tmp_path)


def test_a_lora_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=r"is no whole single-file checkpoint: it has no tensor 'model.diffusion_model.\*'"):
        open_checkpoint(str(tmp_path / "lora.safetensors"), None, tmp_path)


def test_an_sdxl_file_without_its_second_text_encoder(tmp_path: Path) -> None:
    names = ("model.diffusion_model.x", "first_stage_model.x", "conditioner.embedders.0.transformer.x")
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match=r"is an SDXL checkpoint without its second text encoder: it has no tensor 'conditioner\."
                                         r"embedders\.1\.model\.\*'"):
        open_checkpoint(str(tmp_path / "xl.safetensors"), None, tmp_path)


def test_a_single_file_without_a_tokenizer_names_the_ways_out(small_folder: Path, parts: dict, tmp_path: Path, offline: Path) -> None:
    folder = copy(small_folder, tmp_path)
    shutil.rmtree(folder / "tokenizer")
    (tmp_path / "file").mkdir()
    file = small_model.save_ldm(tmp_path / "file" / "x.safetensors", parts)
    with pytest.raises(Unavailable, match=r"has no folder 'tokenizer', .* put one there .* or name a diffusers folder that has one"):
        open_checkpoint(str(folder), str(file), tmp_path / "work")
    small_model.save_tokenizer(file.parent / "tokenizer")
    files = open_checkpoint(str(folder), str(file), tmp_path / "work").files
    assert files["tokenizer/vocab.json"] == (file.parent / "tokenizer" / "vocab.json").resolve()
