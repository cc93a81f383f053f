"""A small Stable Diffusion in a diffusers folder, and the same weights in the layout of the original LDM code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel

from runtime.manifest import sha256_of


def unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    options = {"sample_size": 8, "block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8, "cross_attention_dim": 32,
               "attention_head_dim": 2, "layers_per_block": 2, **changes}
    return UNet2DConditionModel(**options).eval()


def vae(seed: int = 1) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(sample_size=64, block_out_channels=(8, 8, 16, 16), norm_num_groups=8, layers_per_block=2,
                         down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4).eval()


def loud(vae: AutoencoderKL, by: float) -> AutoencoderKL:
    """Its decoder with residuals that are as many times larger, as SDXL's have grown: the norms take it away again, and the picture is the
    same. Changes the model itself."""
    for name, layer in vae.decoder.named_modules():
        if name == "conv_in" or name.endswith(("conv2", "to_out.0")):
            layer.weight.data *= by
            layer.bias.data *= by
        elif name.endswith("conv_shortcut") or (".upsamplers." in name and hasattr(layer, "bias")):
            layer.bias.data *= by
    return vae


def text_encoder(seed: int = 2, layers: int = 2) -> CLIPTextModel:
    torch.manual_seed(seed)
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=600, hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=2, pad_token_id=1)).eval()


def safety_checker(seed: int = 3) -> StableDiffusionSafetyChecker:
    torch.manual_seed(seed)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14}
    return StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config={}, projection_dim=16)).eval()


def save_tokenizer(folder: Path) -> None:
    """A byte-pair tokenizer without merges but one: 512 symbols and the two special tokens."""
    folder.mkdir(parents=True)
    symbols = [chr(33 + i) for i in range(255)]
    vocab = [*symbols, *(symbol + "</w>" for symbol in symbols), "ab", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save(folder: Path, parts: dict[str, Any]) -> Path:
    """Writes `parts` {component: model} as a diffusers folder with tokenizer and scheduler."""
    classes = {"text_encoder": "transformers", "safety_checker": "stable_diffusion", "unet": "diffusers", "vae": "diffusers"}
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    for name, model in parts.items():
        model.save_pretrained(folder / name)
        index[name] = [classes[name], type(model).__name__]
    save_tokenizer(folder / "tokenizer")
    DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    if "safety_checker" in parts:
        (folder / "feature_extractor").mkdir()
        (folder / "feature_extractor" / "preprocessor_config.json").write_text('{"size": 28}\n')
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def to_ldm(unet_state: dict[str, torch.Tensor], vae_state: dict[str, torch.Tensor], text_state: dict[str, torch.Tensor], open_clip: bool,
           ) -> dict[str, torch.Tensor]:
    """The state of diffusers' modules (4 levels, 2 layers per block) under the names that CompVis and Stability published."""
    found = ldm_unet(unet_state) | ldm_vae(vae_state)
    if not open_clip:
        found |= {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text_state.items()}
        return found | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    text_state = text_state | {"text_projection.weight": torch.zeros(32, 32)}
    # SD 2.x: the file has a last block that the model does not use
    return found | ldm_open_clip(text_state, "cond_stage_model.model", unused=1)


def ldm_unet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    attends = any(name.startswith("up_blocks.0.attentions.") for name in state)
    return {f"model.diffusion_model.{_ldm_unet(name, attends)}": tensor for name, tensor in state.items()}


def ldm_vae(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in state.items():
        convolved = tensor[:, :, None, None] if re.search(r"attentions\.0\.to_.*weight", name) else tensor
        found[f"first_stage_model.{_ldm_vae(name)}"] = convolved
    return found


def _ldm_unet(name: str, first_attends: bool) -> str:
    for old, new in (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
                     ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
                     ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2")):
        if name.startswith(old):
            return name.replace(old, new, 1)
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name):
        side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if kind == "downsamplers":
            return f"input_blocks.{3 * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":  # where the first up block has no attention, its upsampler comes sooner
            return f"output_blocks.{3 * block + 2}.{1 if block == 0 and not first_attends else 2}.{rest}"
        place = f"input_blocks.{3 * block + layer + 1}" if side == "down" else f"output_blocks.{3 * block + layer}"
        return f"{place}.{0 if kind == 'resnets' else 1}.{_resnet(rest) if kind == 'resnets' else rest}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        return f"middle_block.1.{found[3]}" if found[1] == "attentions" else f"middle_block.{2 * int(found[2])}.{_resnet(found[3])}"
    raise AssertionError(name)


def _resnet(rest: str) -> str:
    for old, new in (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
                     ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection")):
        rest = rest.replace(old, new)
    return rest


def _ldm_vae(name: str) -> str:
    for old, new in (("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("mid_block.attentions.0.", "mid.attn_1."),
                     ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"), ("group_norm", "norm"),
                     ("attn_1.to_out.0", "attn_1.proj_out"), ("attn_1.to_", "attn_1.")):
        name = name.replace(old, new)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda found: f"up.{3 - int(found[1])}.block.", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample", name)


def ldm_open_clip(state: dict[str, torch.Tensor], prefix: str, unused: int = 0) -> dict[str, torch.Tensor]:
    """OpenCLIP's names, q, k and v fused, the projection transposed; after the blocks of `state` come `unused` ones."""
    found = {f"{prefix}.positional_embedding": state["embeddings.position_embedding.weight"],
             f"{prefix}.token_embedding.weight": state["embeddings.token_embedding.weight"],
             f"{prefix}.ln_final.weight": state["final_layer_norm.weight"], f"{prefix}.ln_final.bias": state["final_layer_norm.bias"],
             f"{prefix}.text_projection": state["text_projection.weight"].T.contiguous(), f"{prefix}.logit_scale": torch.tensor(4.6)}
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers."))
    for layer in range(layers + unused):
        own, block = f"encoder.layers.{min(layer, layers - 1)}", f"{prefix}.transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            found[f"{block}.attn.in_proj_{kind}"] = torch.cat([state[f"{own}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
            for new, old in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                             ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
                found[f"{block}.{new}.{kind}"] = state[f"{own}.{old}.{kind}"].clone()
    return found


def save_ldm(path: Path, parts: dict[str, Any], open_clip: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    states = [parts[name].state_dict() for name in ("unet", "vae", "text_encoder")]
    tensors = to_ldm(*states, open_clip) | {"alphas_cumprod": torch.linspace(1, 0, 1000)}  # training leaves more in the file
    tensors |= {f"model_ema.{i}": torch.ones(1) for i in range(101)}
    save_file({name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, path)
    return path


def hashes(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}
