"""The four networks of a Stable Diffusion pipeline in their smallest form, and their graphs from torch's two exporters"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

BATCH, HEIGHT, WIDTH, TOKENS = "batch_size", "height", "width", "sequence_length"


class Call(torch.nn.Module):
    """A module with tensors in and tensors out."""

    def __init__(self, model: torch.nn.Module, function: Callable[..., object]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(self.model, *inputs)


@dataclass(frozen=True)
class Network:
    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]


def text_encoder() -> Network:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=3,
        pad_token_id=1,
    )
    model = CLIPTextModel(config).eval()
    module = Call(model, lambda model, ids: tuple(model(ids, return_dict=False)[:2]))
    return Network(
        module,
        {"input_ids": torch.ones(2, 9, dtype=torch.long)},
        ("last_hidden_state", "pooler_output"),
        {"input_ids": {0: BATCH, 1: TOKENS}},
    )


def unet() -> Network:
    torch.manual_seed(1)
    model = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        sample_size=8,
    ).eval()
    module = Call(model, lambda model, sample, timestep, states: model(sample, timestep, states, return_dict=False)[0])
    inputs = {"sample": torch.randn(2, 4, 8, 12), "timestep": torch.tensor([7]), "encoder_hidden_states": torch.randn(2, 9, 8)}
    axes = {"sample": {0: BATCH, 2: HEIGHT, 3: WIDTH}, "encoder_hidden_states": {0: BATCH, 1: TOKENS}}
    return Network(module, inputs, ("out_sample",), axes)


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()


def vae_encoder() -> Network:
    module = Call(autoencoder(), lambda model, sample: model.encode(sample).latent_dist.parameters)
    return Network(module, {"sample": torch.randn(2, 3, 16, 24)}, ("latent_parameters",), {"sample": {0: BATCH, 2: HEIGHT, 3: WIDTH}})


def vae_decoder() -> Network:
    module = Call(autoencoder(), lambda model, sample: model.decode(sample, return_dict=False)[0])
    return Network(module, {"latent_sample": torch.randn(2, 4, 8, 12)}, ("sample",), {"latent_sample": {0: BATCH, 2: HEIGHT, 3: WIDTH}})


NETWORKS: dict[str, Callable[[], Network]] = {
    "text_encoder": text_encoder,
    "unet": unet,
    "vae_encoder": vae_encoder,
    "vae_decoder": vae_decoder,
}


def export_dynamo(network: Network, path: Path, opset: int = 20) -> Path:
    """What `export.trace` gets from torch's exporter, before any pass."""
    shapes = tuple(network.axes.get(name, {}) for name in network.inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.module,
            tuple(network.inputs.values()),
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            dynamic_shapes=(shapes,),  # one tuple for `*inputs`
            opset_version=opset,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    program.save(path)
    return path


def export_torchscript(network: Network, path: Path) -> Path:
    """What optimum's exporter makes: the old exporter, with names for some axes of the outputs too."""
    axes = {**network.axes, **{name: {0: BATCH} for name in network.outputs}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.module,
            tuple(network.inputs.values()),
            str(path),
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
            do_constant_folding=True,
        )
    return path
