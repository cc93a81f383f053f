"""The published models' architectures with few channels: every layer and every site of a fusion, in graphs that run in milliseconds."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

from export.component import Component
from export.families.unet import UNet, UNetWithSize
from export.families.vae import VaeDecoder, VaeEncoder
from export.trace import trace


class Transformer(torch.nn.Module):
    """A transformer of the U-Net with its one block; sample [B, S, 32], encoder_hidden_states [B, S, 24] -> [B, S, 32]."""

    def __init__(self, processor: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__()
        self.block = BasicTransformerBlock(32, 2, 16, cross_attention_dim=24, activation_fn="geglu")
        for attention in (self.block.attn1, self.block.attn2) if processor is not None else ():
            attention.set_processor(processor)

    def forward(self, sample: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return self.block(sample, encoder_hidden_states=encoder_hidden_states)


def einsum_attention(attention: Attention, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None,
                     **_: Any) -> torch.Tensor:  # fmt: skip
    """The first diffusers' CrossAttention: heads in the batch, and products in Einstein's notation."""
    context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    made = (attention.to_q(hidden_states), attention.to_k(context), attention.to_v(context))
    q, k, v = (attention.head_to_batch_dim(each) for each in made)
    weights = (torch.einsum("b i d, b j d -> b i j", q, k) * attention.scale).softmax(dim=-1)
    result = attention.batch_to_head_dim(torch.einsum("b i j, b j d -> b i d", weights, v))
    return attention.to_out[0](result)


def vae_attention() -> torch.nn.Module:
    """The attention of the VAE, of one head, in the older of diffusers' forms; sample [B, 16, H, W] -> [B, 16, H, W]."""
    return Attention(16, heads=1, dim_head=16, norm_num_groups=4, residual_connection=True, bias=True, processor=AttnProcessor())


class TextEncoder(torch.nn.Module):
    """input_ids [B, S] -> last_hidden_state [B, S, 16]."""

    def __init__(self, layers: int, activation: str) -> None:
        super().__init__()
        config = CLIPTextConfig(vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
                                hidden_act=activation, bos_token_id=0, eos_token_id=3, pad_token_id=1)  # fmt: skip
        self.model = CLIPTextModel(config)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, return_dict=False)[0]


def unet(**changes: Any) -> torch.nn.Module:
    """Stable Diffusion's: four levels, two layers in each, 16 transformers."""
    structure = {"sample_size": 8, "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "cross_attention_dim": 16,
                 "attention_head_dim": 2, "layers_per_block": 2}  # fmt: skip
    return UNet(UNet2DConditionModel(**{**structure, **changes}))


# What SD 2.x and SDXL have and SD 1.x has not, in two levels of one layer: projections as linear layers, heads by level, a deeper
# transformer, the pooled text (16 numbers) and the six sizes of the picture as conditions
LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1, "use_linear_projection": True, "attention_head_dim": (1, 2),
          "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
          "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
          "projection_class_embeddings_input_dim": 16 + 6 * 4}  # fmt: skip
# The refiner's: the lowest level has no transformers, the one above it has all of one depth, and the sizes are five
REFINER_LEVELS = {**LEVELS, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "transformer_layers_per_block": 2,
                  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "projection_class_embeddings_input_dim": 16 + 5 * 4}  # fmt: skip


def vae() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=2,
                         down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], torch.nn.Module]] = {
    "unet": unet,
    "sdxl_levels": lambda: UNetWithSize(unet(**LEVELS).model),
    "refiner_levels": lambda: UNetWithSize(unet(**REFINER_LEVELS).model),
    "transformer": Transformer,  # torch's scaled_dot_product_attention, as diffusers has it with torch 2
    "transformer-baddbmm": lambda: Transformer(AttnProcessor()),
    "transformer-einsum": lambda: Transformer(einsum_attention),
    "vae_attention": vae_attention,
    "vae_decoder": lambda: VaeDecoder(vae()),
    "vae_encoder": lambda: VaeEncoder(vae()),
    "vit-l": lambda: TextEncoder(12, "quick_gelu"),  # SD 1.x and SDXL's first
    "vit-h": lambda: TextEncoder(23, "gelu"),  # SD 2.x
    "vit-h-2": lambda: TextEncoder(2, "gelu"),  # two of its layers, which are all alike
    "tanh": lambda: TextEncoder(1, "gelu_pytorch_tanh"),  # nobody's: its GELU is another function
}


def component(architecture: str) -> Component:
    """An architecture with seeded weights, its example inputs and its free axes."""
    torch.manual_seed(zlib.crc32(architecture.encode()))
    module = ARCHITECTURES[architecture]().eval()
    for each in module.modules():
        if isinstance(each, torch.nn.GroupNorm):  # as they come, scale and bias are 1 and 0, and an error in them would not be seen
            torch.nn.init.normal_(each.weight, 1, 0.3)
            torch.nn.init.normal_(each.bias, 0, 0.3)
    tokens, picture = {0: "batch_size", 1: "sequence_length"}, {0: "batch_size", 2: "height", 3: "width"}
    if architecture in ("vit-l", "vit-h", "vit-h-2", "tanh"):
        inputs, axes = {"input_ids": torch.randint(4, 60, (2, 9))}, {"input_ids": tokens, "out": tokens}
    elif architecture.startswith("vae"):
        sample = {"vae_decoder": (2, 4, 8, 8), "vae_encoder": (2, 3, 32, 32), "vae_attention": (2, 16, 6, 5)}[architecture]
        inputs = {"sample": torch.randn(sample)}
        axes = {"sample": picture, "out": {axis: f"scaled_{name}" if axis else name for axis, name in picture.items()}}
    elif architecture.startswith("transformer"):
        inputs = {"sample": torch.randn(2, 15, 32), "encoder_hidden_states": torch.randn(2, 7, 24)}
        pixels = {0: "batch_size", 1: "pixels"}
        axes = {"sample": pixels, "encoder_hidden_states": tokens, "out": pixels}
    else:  # a size that the U-Net cannot halve three times: else torch takes its sizes for constants
        inputs = {"sample": torch.randn(2, 4, 12, 10), "timestep": torch.tensor(5), "encoder_hidden_states": torch.randn(2, 7, 16)}
        axes = {"sample": picture, "encoder_hidden_states": tokens, "out": picture}
        if sizes := {"sdxl_levels": 6, "refiner_levels": 5}.get(architecture):
            inputs |= {"text_embeds": torch.randn(2, 16), "time_ids": torch.randint(0, 99, (2, sizes)).float()}
            axes |= {"text_embeds": {0: "batch_size"}, "time_ids": {0: "batch_size"}}
    return Component(architecture, module, inputs, ("out",), axes)


def by_torchscript(made: Component, opset: int, folder: Path) -> ir.Model:
    """As optimum does."""
    torch.onnx.export(made.module, tuple(made.example_inputs.values()), folder / "torchscript.onnx", dynamo=False, opset_version=opset,
                      input_names=list(made.example_inputs), output_names=["out"], dynamic_axes=made.dynamic_axes)  # fmt: skip
    return ir.load(folder / "torchscript.onnx")


def by_dynamo(made: Component, opset: int, _: Path) -> ir.Model:
    """torch's new exporter by its own defaults."""
    program = torch.onnx.export(made.module, tuple(made.example_inputs.values()), dynamo=True, opset_version=opset, verbose=False,
                                input_names=list(made.example_inputs), output_names=["out"])  # fmt: skip
    assert program is not None
    return program.model


EXPORTERS: dict[str, Callable[[Component, int, Path], ir.Model]] = {
    "dynamic": lambda made, *_: trace(made, dynamic=True),  # as this project exports
    "static": lambda made, *_: trace(made, dynamic=False),
    "dynamo": by_dynamo,
    "torchscript": by_torchscript,
}


def write(folder: Path, architecture: str, exporter: str, opset: int) -> None:
    """Writes what `Traced` reads: the graph, and what torch makes of the example inputs."""
    made = component(architecture)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = EXPORTERS[exporter](made, opset, folder)
        arrays = {"expected": made.module(*made.example_inputs.values()), **made.example_inputs}
    assert model.opset_imports[""] == opset
    ir.save(model, folder / "model.onnx")
    np.savez(folder / "arrays.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})


@dataclass(frozen=True)
class Traced:
    """A graph in a folder of its own, before any pass."""

    folder: Path

    def model(self) -> ir.Model:
        return ir.load(self.folder / "model.onnx")

    def arrays(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Inputs by name, and torch's output."""
        with np.load(self.folder / "arrays.npz") as stored:
            arrays = dict(stored)
        expected = arrays.pop("expected")
        return arrays, expected
