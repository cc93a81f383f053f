"""Checkpoints that are folders: their modules are those that were saved, and what is wrong with one is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_model
import torch
from diffusers import UNet2DConditionModel
from folders import copy, rewrite, same
from safetensors.torch import load_file

from export.weights import open_checkpoint
from runtime.errors import InputError

COMPONENTS = ("text_encoder", "unet", "vae", "safety_checker")


def test_the_modules_of_a_folder_are_those_that_were_saved(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(small_folder), None, tmp_path / "work")
    assert tuple(checkpoint.configs) == COMPONENTS
    for name in COMPONENTS:
        module = checkpoint.module(name)
        assert same(module, parts[name]), name
        assert not module.training
        assert all(parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in module.parameters())
        assert checkpoint.parameters(name) == sum(parameter.numel() for parameter in parts[name].parameters())
    assert not (tmp_path / "work").exists()


def test_nothing_else_ever_lies_where_an_outline_has_a_weight(small_folder: Path, tmp_path: Path) -> None:
    """A weight is known by its address: a buffer of a second module once lay where a weight of the first one had been."""
    outline = open_checkpoint(str(small_folder), None, tmp_path).outline()
    first = {tensor.data_ptr(): name for name, tensor in outline.module("text_encoder").state_dict().items()}
    others = [torch.empty_like(tensor) for tensor in open_checkpoint(str(small_folder), None, tmp_path).module("text_encoder").parameters()]
    assert first.keys().isdisjoint(other.data_ptr() for other in others)
    assert {tensor.data_ptr(): name for name, tensor in outline.module("text_encoder").state_dict().items()} == first


def test_a_module_computes_what_the_saved_one_computes(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    """Buffers that no checkpoint holds (position_ids) take part in this."""
    checkpoint = open_checkpoint(str(small_folder), None, tmp_path)
    torch.manual_seed(0)
    ids, pixels = torch.randint(600, (2, 77)), torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(checkpoint.module("text_encoder")(ids).last_hidden_state, parts["text_encoder"](ids).last_hidden_state)
        assert torch.equal(checkpoint.module("safety_checker").vision_model(pixels)[1], parts["safety_checker"].vision_model(pixels)[1])


def test_what_goes_into_the_package_comes_from_the_folder(small_folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(small_folder), None, tmp_path)
    assert checkpoint.alias == "small"
    assert checkpoint.family == "sd"
    assert checkpoint.scheduler == json.loads((small_folder / "scheduler" / "scheduler_config.json").read_text())
    assert checkpoint.configs["unet"] == json.loads((small_folder / "unet" / "config.json").read_text())
    names = ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
             "feature_extractor/preprocessor_config.json")
    assert set(checkpoint.files) == set(names)
    assert all(path.read_bytes() == (small_folder / name).read_bytes() for name, path in checkpoint.files.items())


def test_provenance_has_the_hash_of_every_file(small_folder: Path, tmp_path: Path) -> None:
    provenance = open_checkpoint(str(small_folder), None, tmp_path).provenance()
    assert (provenance["kind"], provenance["id"], provenance["revision"]) == ("folder", "small", "")
    found = small_model.hashes(small_folder)
    assert provenance["sha256"] == {name: found[name] for name in provenance["sha256"]}
    assert {name for name in found if name.endswith(".safetensors")} < provenance["sha256"].keys()


def test_half_precision_is_converted_without_loss(small_folder: Path, tmp_path: Path) -> None:
    folder = copy(small_folder, tmp_path)
    for name in COMPONENTS:
        rewrite(next((folder / name).glob("*.safetensors")), lambda tensors: {key: tensor.half() for key, tensor in tensors.items()})
    checkpoint = open_checkpoint(str(folder), None, tmp_path / "work")
    for name in COMPONENTS:
        state = checkpoint.module(name).state_dict()
        stored = load_file(next((folder / name).glob("*.safetensors")))
        assert all(tensor.dtype == torch.float32 for tensor in state.values())
        assert sum(tensor.double().sum() for tensor in state.values()) == sum(tensor.double().sum() for tensor in stored.values())
    assert same(checkpoint.module("unet"), UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float16))


def test_each_module_is_private(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    before = small_model.hashes(small_folder)
    checkpoint = open_checkpoint(str(small_folder), None, tmp_path)
    broken = checkpoint.module("unet")
    broken.conv_in.bias.zero_()
    assert same(checkpoint.module("unet"), parts["unet"])
    assert small_model.hashes(small_folder) == before


def test_the_names_of_older_checkpoints_are_understood(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    """As CompVis/stable-diffusion-v1-4 has them: transformers 4, diffusers 0.2."""
    folder = copy(small_folder, tmp_path)

    def old_text(tensors: dict) -> dict:
        return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()} | {
            "text_model.embeddings.position_ids": torch.arange(77)[None]}

    def old_checker(tensors: dict) -> dict:
        inner = {name.replace("vision_model.vision_model.", "vision_model."): tensor for name, tensor in tensors.items()}
        return {name.replace("vision_model.", "vision_model.vision_model."): tensor for name, tensor in inner.items()} | {
            "vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}

    def old_vae(tensors: dict) -> dict:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
        return tensors

    rewrite(folder / "text_encoder" / "model.safetensors", old_text)
    rewrite(folder / "safety_checker" / "model.safetensors", old_checker)
    rewrite(folder / "vae" / "diffusion_pytorch_model.safetensors", old_vae)
    assert any("proj_attn" in name for name in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    checkpoint = open_checkpoint(str(folder), None, tmp_path)
    assert all(same(checkpoint.module(name), parts[name]) for name in COMPONENTS)


def test_shards_are_one_component(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    folder = copy(small_folder, tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    parts["unet"].save_pretrained(folder / "unet", max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert same(open_checkpoint(str(folder), None, tmp_path).module("unet"), parts["unet"])

    shard = min((folder / "unet").glob("*-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(InputError, match=rf"names the shard '{shard.name}', which is missing: copy or download it again"):
        open_checkpoint(str(folder), None, tmp_path)


def test_a_tokenizer_of_transformers_5_gets_its_classic_files(small_folder: Path, tmp_path: Path) -> None:
    folder = copy(small_folder, tmp_path)
    vocabulary = json.loads((small_folder / "tokenizer" / "vocab.json").read_text())
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    model = {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]]}
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": model}))
    files = open_checkpoint(str(folder), None, tmp_path / "work").files
    assert json.loads(files["tokenizer/vocab.json"].read_text()) == vocabulary
    assert files["tokenizer/merges.txt"].read_text() == "#version: 0.2\na b\n"


@pytest.mark.parametrize("config", [None, {"pad_token": "!"}, {"pad_token": "!", "model_max_length": int(1e30)}])
def test_a_tokenizer_that_does_not_name_its_length_gets_clips(small_folder: Path, tmp_path: Path, config: dict | None) -> None:
    folder = copy(small_folder, tmp_path)
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.unlink()
    if config is not None:
        file.write_text(json.dumps(config))
    files = open_checkpoint(str(folder), None, tmp_path / "work").files
    made = json.loads(files["tokenizer/tokenizer_config.json"].read_text())
    assert made == (config or {"tokenizer_class": "CLIPTokenizer"}) | {"model_max_length": 77}
    assert files["tokenizer/vocab.json"] == (folder / "tokenizer" / "vocab.json").resolve()


def test_another_folder_can_give_the_weights(small_folder: Path, tmp_path: Path) -> None:
    other = {"text_encoder": small_model.text_encoder(12), "unet": small_model.unet(10), "vae": small_model.vae(11)}
    small_model.save(tmp_path / "other", other)
    checkpoint = open_checkpoint(str(small_folder), str(tmp_path / "other"), tmp_path / "work")
    assert tuple(checkpoint.configs) == ("text_encoder", "unet", "vae")  # the other has no safety checker
    assert same(checkpoint.module("unet"), other["unet"])
    assert checkpoint.alias == "small"
    assert checkpoint.provenance()["id"] == "other"


# --- what is refused -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "message"), [
    ("sd41", r"there is no model 'sd41': did you mean sd21 or sd15 or sd14\?"),
    ("tinny", r"there is no model 'tinny': did you mean tiny"),
    ("xyzzy", r"there is no model 'xyzzy': the names are tiny, tiny-sd21, sd14, .*; a folder, a file or a hub id ORG/NAME will do too"),
    ("svd-xt", r"'svd-xt' is of the family 'svd', which this version cannot export yet: it exports tiny, tiny-sd21, sd14"),
    ("./missing", r"there is no folder or file './missing'"),
    ("some/missing/folder", r"there is no folder or file 'some/missing/folder'"),
    ("missing.safetensors", r"there is no folder or file 'missing.safetensors'"),
    ("models/missing.ckpt", r"there is no folder or file 'models/missing.ckpt'"),
])
def test_a_model_that_is_not_there(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(model, None, tmp_path)


@pytest.mark.parametrize(("weights", "message"), [
    ("nowhere", "there is no folder or file 'nowhere': --weights takes 'hub', a path, or 'random\\[:SEED\\]'"),
    ("random:x", "'random:x' names no seed: write random or random:SEED, with a whole number that is not negative"),
    ("random:-1", "'random:-1' names no seed"),
    ("hub", "is not on the hub: leave --weights out, or give a path or 'random'"),
])
def test_weights_that_are_not_there(small_folder: Path, tmp_path: Path, weights: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(str(small_folder), weights, tmp_path)


def test_a_file_that_is_no_checkpoint(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match=r"is no checkpoint: a single file ends with .safetensors"):
        open_checkpoint(str(small_folder), str(tmp_path / "x.txt"), tmp_path)


def test_a_single_file_gives_no_architecture(parts: dict, tmp_path: Path) -> None:
    file = small_model.save_ldm(tmp_path / "x.safetensors", parts)
    with pytest.raises(InputError, match="is a single file, which gives no architecture to other weights: name an alias or a folder"):
        open_checkpoint(str(file), "random", tmp_path)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no diffusers model: it has no model_index.json"):
        open_checkpoint(str(tmp_path), None, tmp_path)


def test_a_pipeline_of_another_class_is_named(small_folder: Path, tmp_path: Path) -> None:
    folder = copy(small_folder, tmp_path)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    with pytest.raises(InputError, match="is a StableDiffusion3Pipeline, which this version cannot export: it exports Stable"):
        open_checkpoint(str(folder), None, tmp_path)


def test_a_component_of_another_class_is_named(small_folder: Path, tmp_path: Path) -> None:
    folder = copy(small_folder, tmp_path)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderTiny"}))
    with pytest.raises(InputError, match="component 'vae' is a AutoencoderTiny; this version exports AutoencoderKL there"):
        open_checkpoint(str(folder), None, tmp_path)


@pytest.mark.parametrize(("text", "message"), [
    ("{", r"config.json' is no JSON"), ("[]", r"config.json' holds no JSON object"),
    ('{"block_out_channels": [8]}', "the config of component 'vae' describes no AutoencoderKL"),
])
def test_a_config_without_sense(small_folder: Path, tmp_path: Path, text: str, message: str) -> None:
    folder = copy(small_folder, tmp_path)
    (folder / "vae" / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        open_checkpoint(str(folder), None, tmp_path)


@pytest.mark.parametrize("missing", ["unet/config.json", "scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json"])
def test_an_incomplete_folder(small_folder: Path, tmp_path: Path, missing: str) -> None:
    folder = copy(small_folder, tmp_path)
    (folder / missing).unlink()
    with pytest.raises(InputError, match=rf"{missing}.* is no complete diffusers model"):
        open_checkpoint(str(folder), None, tmp_path)


def test_a_component_without_weights(small_folder: Path, tmp_path: Path) -> None:
    folder = copy(small_folder, tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"the component 'unet' has no weights: '.*diffusion_pytorch_model.safetensors' is missing"):
        open_checkpoint(str(folder), None, tmp_path)


def test_a_truncated_file_is_refused_on_opening(small_folder: Path, tmp_path: Path) -> None:
    path = copy(small_folder, tmp_path) / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.safetensors' is truncated: \d+ bytes where its header needs \d+"):
        open_checkpoint(str(tmp_path / "small"), None, tmp_path)


def test_weights_of_another_width_name_the_first_tensor(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    small_model.save(tmp_path / "wide", {**parts, "unet": small_model.unet(in_channels=9)})
    with pytest.raises(InputError, match=r"has the tensor 'unet/conv_in.weight' with the shape \[16, 9, 3, 3\] where 'small' has "
                                         r"\[16, 4, 3, 3\]: it is of another architecture"):
        open_checkpoint(str(small_folder), str(tmp_path / "wide"), tmp_path)


def test_weights_of_another_model_name_the_first_tensor(small_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has the tensor 'text_encoder/embeddings.token_embedding.weight' with the shape \[600, 32\] "
                                         r"where 'sd14' has \[49408, 768\]: it is of another architecture"):
        open_checkpoint("sd14", str(small_folder), tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: {k: v for k, v in t.items() if k != "conv_in.bias"}, "lacks the tensor 'unet/conv_in.bias': it is not of the architecture"),
    (lambda t: {k: v for k, v in t.items() if "mid_block" not in k}, r"lacks the tensor 'unet/mid_block\..*' and \d+ more: it is not of"),
    (lambda t: t | {"class_embedding.weight": torch.zeros(3)}, "has the tensor 'unet/class_embedding.weight', which 'small' has not"),
])
def test_missing_and_unexpected_tensors(small_folder: Path, tmp_path: Path, change, message: str) -> None:
    folder = copy(small_folder, tmp_path)
    rewrite(folder / "unet" / "diffusion_pytorch_model.safetensors", change)
    with pytest.raises(InputError, match=message):
        open_checkpoint(str(folder), None, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite(small_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = copy(small_folder, tmp_path)

    def spoil(tensors: dict) -> dict:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        tensors["mid_block.resnets.0.conv1.weight"][3, 2, 1, 1] = float("nan")
        return tensors

    rewrite(folder / "unet" / "diffusion_pytorch_model.safetensors", spoil)
    with pytest.raises(InputError, match=r"the tensor 'unet/mid_block.resnets.0.conv1.weight' of 'small' has NaN or infinite weights"):
        open_checkpoint(str(folder), None, tmp_path).module("unet")
