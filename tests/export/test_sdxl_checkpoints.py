"""SDXL's checkpoints: folders, shards, single files, half precision; and what one that is not whole is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_sdxl
import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors.torch import load_file, save_file

from export import ldm
from export.run import Request, export
from export.weights import open_checkpoint
from runtime.errors import InputError, Unavailable

ALIASES = ("tiny-sdxl", "tiny-sdxl-refiner")
WEIGHTS = {"text_encoder_2": "model.safetensors", "unet": "diffusion_pytorch_model.safetensors"}


def same(module: torch.nn.Module, other: torch.nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name].to(dtype).float()) for name in ours)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The modules of both models. Nobody may write to them."""
    return {alias: small_sdxl.parts(alias, tmp_path_factory.mktemp(alias)) for alias in ALIASES}


@pytest.fixture(scope="module")
def folders(parts: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, saved. Nobody may write to them."""
    return {alias: small_sdxl.save(tmp_path_factory.mktemp("models") / alias, modules) for alias, modules in parts.items()}


@pytest.fixture
def base(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the base model, to be damaged."""
    return Path(shutil.copytree(folders["tiny-sdxl"], tmp_path / "base"))


@pytest.mark.parametrize("alias", ALIASES)
def test_a_folder_is_told_by_its_text_encoders(alias: str, parts: dict[str, dict[str, Any]], folders: dict[str, Path],
                                               tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(folders[alias]), None, tmp_path)
    assert checkpoint.family == alias.removeprefix("tiny-")
    assert tuple(checkpoint.configs) == tuple(parts[alias])
    assert all(same(checkpoint.module(name), module) for name, module in parts[alias].items())
    assert checkpoint.options == {"force_zeros_for_empty_prompt": alias == "tiny-sdxl"}
    assert {Path(name).parent.name for name in checkpoint.files} == ({"tokenizer", "tokenizer_2"} if "text_encoder" in parts[alias]
                                                                     else {"tokenizer_2"})


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_single_file_gives_the_same_modules(alias: str, dtype: torch.dtype, parts: dict[str, dict[str, Any]], folders: dict[str, Path],
                                              tmp_path: Path) -> None:
    file = small_sdxl.save_ldm(tmp_path / "single.safetensors", parts[alias], dtype)
    checkpoint = open_checkpoint(str(folders[alias]), str(file), tmp_path)
    for name, module in parts[alias].items():
        assert same(checkpoint.module(name), module, dtype), name


def test_the_second_text_encoder_is_converted_as_diffusers_does(parts: dict[str, dict[str, Any]]) -> None:
    model, tensors = parts["tiny-sdxl"]["text_encoder_2"], small_sdxl.to_ldm(parts["tiny-sdxl"])
    ours = ldm.component("text_encoder_2", tensors, {"num_hidden_layers": 3})
    theirs = convert_open_clip_checkpoint(model, tensors, prefix="conditioner.embedders.1.model.")
    assert {name.removeprefix("text_model.") for name in ours} == {name.removeprefix("text_model.") for name in theirs}
    for name, tensor in theirs.items():
        assert torch.equal(ours[name if name in ours else f"text_model.{name}"], tensor), name


@pytest.mark.parametrize(("encoder", "alias"), [("1", "sdxl"), ("0", "sdxl-refiner")])
def test_the_kind_of_a_single_file_is_seen_from_its_names(encoder: str, alias: str, tmp_path: Path) -> None:
    names = ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x",
             f"conditioner.embedders.{encoder}.model.transformer.resblocks.9.mlp.c_proj.bias"]
    tensors = {name: torch.zeros(320, 4, 3, 3) for name in [*names, *(["conditioner.embedders.0.transformer.x"] if encoder == "1" else [])]}
    ldm.require_ldm(tensors, tmp_path / "x.safetensors")
    found = ldm.architecture(tensors, tmp_path / "x.safetensors")
    assert found.family == alias
    assert found.name == "x"
    assert found.configs["unet"]["sample_size"] == 128


def test_shards_are_one_component(parts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = small_sdxl.save(tmp_path / "sharded", parts["tiny-sdxl"], shard="300KB")
    for name, stem in (("text_encoder_2", "model"), ("unet", "diffusion_pytorch_model")):
        assert (folder / name / f"{stem}.safetensors.index.json").is_file()
        assert len(list((folder / name).glob("*-of-*.safetensors"))) > 1
    checkpoint = open_checkpoint(str(folder), None, tmp_path / "work")
    assert all(same(checkpoint.module(name), module) for name, module in parts["tiny-sdxl"].items())


# --- what is not whole ---------------------------------------------------------------------------------------------------------------


def refuses(folder: Path, sentence: str, **options: Any) -> None:
    """An export of the folder ends with this sentence, before the work, and leaves nothing."""
    out = folder.parent / "packages" / "out"
    with pytest.raises(InputError, match=sentence):
        export(Request(str(folder), out, check="none", **options), lambda _: None)
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_a_second_text_encoder_that_is_missing(base: Path) -> None:
    shutil.rmtree(base / "text_encoder_2")
    refuses(base, r"text_encoder_2/config.json' is missing: the folder is no complete diffusers model")


def test_a_second_text_encoder_without_weights(base: Path) -> None:
    (base / "text_encoder_2" / "model.safetensors").unlink()
    refuses(base, "the component 'text_encoder_2' has no weights: '.*model.safetensors' is missing")


def test_a_second_text_encoder_that_is_not_named(base: Path) -> None:
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({**index, "text_encoder_2": [None, None]}))
    refuses(base, "names no second text encoder in its model_index.json: it is no complete SDXL checkpoint")


def test_a_second_tokenizer_that_is_missing(base: Path) -> None:
    shutil.rmtree(base / "tokenizer_2")
    with pytest.raises(Unavailable, match="has no folder 'tokenizer_2', and that of 'base' could not be had from the hub: put one there"):
        open_checkpoint(str(base), None, base.parent / "work")


def test_a_truncated_shard(parts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = small_sdxl.save(tmp_path / "sharded", parts["tiny-sdxl"], shard="300KB")
    shard = sorted((folder / "unet").glob("*-of-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    refuses(folder, rf"{shard.name}' is truncated: \d+ bytes where its header needs \d+: copy or download it again")


@pytest.mark.parametrize("name", WEIGHTS)
def test_half_precision_with_a_nan(name: str, base: Path) -> None:
    file = base / name / WEIGHTS[name]
    tensors = {key: tensor.half() for key, tensor in load_file(file).items()}
    key = sorted(tensors)[3]
    tensors[key].view(-1)[-1] = float("nan")
    save_file(tensors, file)
    sentence = f"the tensor '{name}/.*' of 'base' has NaN or infinite weights: the checkpoint is damaged"
    with pytest.raises(InputError, match=sentence):
        open_checkpoint(str(base), None, base.parent / "work").check_finite(name)  # while graphs are written
    refuses(base, sentence, precision="fp16")  # for torch, before


def test_a_size_that_no_vae_has(base: Path) -> None:
    refuses(base, "a height of 100 is not possible: it must be a positive multiple of 8", height=100, width=64, dynamic=False)
