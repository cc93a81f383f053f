"""Small random models of the structure of SDXL, its refiner and LCM: diffusers' components, and packages whose graphs torch computes.

Everything between a package's manifest and its graphs is the runtime's own; only ONNX Runtime is left out, so that what differs from
diffusers' pipelines on the same modules is the runtime's doing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from runtime import schedulers
from runtime.manifest import ComponentEntry, Manifest, Package, Port
from runtime.providers import provider
from runtime.session import Sessions

TOKENIZER = Path(__file__).resolve().parents[3] / "models" / "tiny" / "tokenizer"
WIDTHS = (32, 48)  # of the two text encoders
PROJECTION = 40
TIME_WIDTH = 8  # of the embedding of each of the time ids
SIDE = 64
SCHEDULER = {  # as published with SDXL: with keys that other samplers read
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "timestep_spacing": "leading",
    "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True,
}  # fmt: skip
Graph = Callable[..., dict[str, torch.Tensor]]


def text_encoder(second: bool, seed: int) -> torch.nn.Module:
    """CLIP's, three layers: with a projection, and what comes before the last layer, for the second one."""
    torch.manual_seed(seed)
    width = WIDTHS[second]
    config = CLIPTextConfig(
        bos_token_id=595, vocab_size=597, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=PROJECTION, hidden_act="gelu" if second else "quick_gelu", eos_token_id=2,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if second else CLIPTextModel)(config).eval()


def unet(seed: int, time_ids: int = 6, **others: Any) -> UNet2DConditionModel:
    """Two levels; cross-attention and the added embeddings loud enough that what they are told is heard."""
    torch.manual_seed(seed)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": TIME_WIDTH,
             "projection_class_embeddings_input_dim": PROJECTION + TIME_WIDTH * time_ids} if time_ids else {}  # fmt: skip
    width = {0: WIDTHS[0], 5: WIDTHS[1], 6: sum(WIDTHS)}[time_ids]
    made = UNet2DConditionModel(**{
        "sample_size": 8, "block_out_channels": (16, 32), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 2,
        "transformer_layers_per_block": (1, 2), "use_linear_projection": True, "cross_attention_dim": width, **added, **others,
    })  # fmt: skip
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "attn2.to_out.0.weight" in name or "attn2.to_v" in name or "add_embedding" in name or "cond_proj" in name:
                parameter *= 4
    return made.eval()


def vae(seed: int, scaling_factor: float) -> AutoencoderKL:
    """SDXL's structure with two channels for a hundred: sides of 8 pixels per latent."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=SIDE, scaling_factor=scaling_factor,
    ).eval()  # fmt: skip


def tokenizers(folder: Path) -> dict[str, CLIPTokenizer]:
    """Writes both tokenizers below a package's folder; the second one pads with "!", as SDXL's does."""
    made = {}
    for name, padding in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        shutil.copytree(TOKENIZER, folder / name, ignore=shutil.ignore_patterns("tokenizer.json"))
        file = folder / name / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": padding}))
        made[name] = CLIPTokenizer.from_pretrained(folder / name)
    return made


def sdxl(folder: Path, **unet_options: Any) -> dict[str, Any]:
    """The components of diffusers' SDXL pipelines; their tokenizers are written below `folder`."""
    return {
        "text_encoder": text_encoder(False, 1), "text_encoder_2": text_encoder(True, 2), **tokenizers(folder),
        "unet": unet(3, **unet_options), "vae": vae(4, 0.13025),
        "scheduler": EulerDiscreteScheduler.from_config(SCHEDULER),
    }  # fmt: skip


def refiner(folder: Path) -> dict[str, Any]:
    """Those of the refiner's, which reads with the second encoder alone."""
    only = {"text_encoder": None, "tokenizer": None}
    return {**sdxl(folder), "unet": unet(5, time_ids=5), "text_encoder_2": text_encoder(True, 6), "vae": vae(7, 0.13025), **only}


def sd(xl: dict[str, Any], **unet_options: Any) -> dict[str, Any]:
    """Those of Stable Diffusion, which reads with SDXL's first encoder."""
    kept = {name: xl[name] for name in ("text_encoder", "tokenizer")}
    return {**kept, "unet": unet(8, time_ids=0, **unet_options), "vae": vae(9, 0.18215)}


class TorchGraph:
    """A torch function behind the two methods that `Sessions` uses of an ONNX Runtime session."""

    def __init__(self, outputs: list[str], compute: Graph) -> None:
        self.outputs, self.compute = outputs, compute

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.outputs]

    @torch.no_grad()
    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = self.compute(**{name: torch.from_numpy(np.asarray(array)) for name, array in feeds.items()})
        return [outputs[name].numpy() for name in names]


class TorchSessions(Sessions):
    """Sessions on modules. `rows` are those of each call of the U-Net."""

    def __init__(self, package: Package, graphs: dict[str, TorchGraph], low_memory: bool = False) -> None:
        super().__init__(package, provider("cpu"), low_memory=low_memory)
        self.graphs = graphs
        self.rows: list[int] = []

    def _session(self, component: str, *_: Any) -> Any:
        return self.graphs[component]

    def run(self, component: str, inputs: Any) -> dict[str, np.ndarray]:
        if component == "unet":
            self.rows.append(len(inputs["sample"]))
        return super().run(component, inputs)


def sessions(folder: Path, parts: dict[str, Any], low_memory: bool = False, **pipeline: Any) -> TorchSessions:
    """A package in `folder`, whose tokenizers are there, that does what `parts` do; `pipeline` adds to the manifest's keys."""
    network, autoencoder = parts["unet"], parts["vae"]
    encoders = [name for name in ("text_encoder", "text_encoder_2") if parts.get(name) is not None]
    time_ids = 0
    if network.config.addition_embed_type:
        time_ids = (network.config.projection_class_embeddings_input_dim - PROJECTION) // TIME_WIDTH
    inputs = {"sample": ("batch_size", network.config.in_channels, "height", "width"), "timestep": (),
              "encoder_hidden_states": ("batch_size", "sequence_length", network.config.cross_attention_dim)}  # fmt: skip
    if time_ids:
        inputs |= {"text_embeds": ("batch_size", PROJECTION), "time_ids": ("batch_size", time_ids)}
    if network.config.time_cond_proj_dim:
        inputs["timestep_cond"] = ("batch_size", network.config.time_cond_proj_dim)
    graphs = {name: _text_graph(parts[name]) for name in encoders} | {
        "unet": TorchGraph(["out_sample"], lambda **given: {"out_sample": _predict(network, **given)}),
        "vae_encoder": TorchGraph(["latent_parameters"], lambda sample: {
            "latent_parameters": autoencoder.quant_conv(autoencoder.encoder(sample))}),
        "vae_decoder": TorchGraph(["sample"], lambda latent_sample: {
            "sample": autoencoder.decoder(autoencoder.post_quant_conv(latent_sample))}),
    }  # fmt: skip
    ports = {
        **{name: {"input_ids": ("batch_size", "sequence_length")} for name in encoders}, "unet": inputs,
        "vae_encoder": {"sample": ("batch_size", 3, "sample_height", "sample_width")},
        "vae_decoder": {"latent_sample": ("batch_size", 4, "latent_height", "latent_width")},
    }  # fmt: skip
    entries = {
        name: ComponentEntry(
            f"{name}/model.onnx", "", tuple(Port(port, "int64" if port == "input_ids" else "float32", shape) for port, shape in of.items()),
            tuple(Port(output, "float32", ()) for output in graphs[name].outputs), 20,
        )
        for name, of in ports.items()
    }  # fmt: skip
    xl = "text_encoder_2" in encoders
    config = {**parts["scheduler"].config, "_class_name": type(parts["scheduler"]).__name__}
    made = {
        "family": ("sdxl-refiner" if time_ids == 5 else "sdxl") if xl else "sd", "height": SIDE, "width": SIDE, "batch": 0, "dynamic": True,
        "vae_scale_factor": 8, "scaling_factor": autoencoder.config.scaling_factor, "latent_channels": 4, "steps": 4, "guidance": 5.0,
        "strength": 0.3 if xl else 0.8, "scheduler": schedulers.make(config).name, "time_ids": time_ids,
        "force_zeros_for_empty_prompt": time_ids == 6,
        "text_encoders": [
            {"component": name, "tokenizer": name.replace("text_encoder", "tokenizer"), "embeddings": "hidden_states.2" if xl else
             "last_hidden_state", "pooled": "text_embeds" if name == "text_encoder_2" else ""} for name in encoders
        ],
        **({"aesthetic_score": 6.0, "negative_aesthetic_score": 2.5} if time_ids == 5 else {}), **pipeline,
    }  # fmt: skip
    return TorchSessions(Package(folder, Manifest("random", {}, "portable", "fp32", {}, made, entries, config, {})), graphs, low_memory)


def _text_graph(model: Any) -> TorchGraph:
    projects = isinstance(model, CLIPTextModelWithProjection)
    states = [f"hidden_states.{layer}" for layer in range(4)]

    def compute(input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        output = model(input_ids, output_hidden_states=True)
        pooled = {"text_embeds": output.text_embeds} if projects else {"pooler_output": output.pooler_output}
        return {"last_hidden_state": output.last_hidden_state, **pooled, **dict(zip(states, output.hidden_states, strict=True))}

    return TorchGraph(["last_hidden_state", "text_embeds" if projects else "pooler_output", *states], compute)


def _predict(network: Any, sample: Any, timestep: Any, encoder_hidden_states: Any, timestep_cond: Any = None, **added: Any) -> torch.Tensor:
    output: torch.Tensor = network(
        sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond, added_cond_kwargs=added or None
    ).sample
    return output
