"""Packages that differ from the embedded model's in one thing, and diffusers' own pipeline on the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from runtime.manifest import NAME, sha256_of

Change = Callable[[dict[str, Any]], None]


def rewrite(package: Path, change: Change) -> None:
    """Changes the manifest's JSON, and brings sizes and hashes up to date."""
    manifest = json.loads((package / NAME).read_text())
    change(manifest)
    for name, entry in manifest["files"].items():
        entry |= {"bytes": (package / name).stat().st_size, "sha256": sha256_of(package / name)}
    for component in manifest["components"].values():
        component["sha256"] = manifest["files"].get(component["file"], component)["sha256"]
    (package / NAME).write_text(json.dumps(manifest))


@pytest.fixture
def package_copy(tiny_package: Path, tmp_path: Path) -> Path:
    """The tiny package, to be damaged."""
    return Path(shutil.copytree(tiny_package, tmp_path / "package"))


@pytest.fixture
def changed(package_copy: Path) -> Callable[[Change], Path]:
    """A copy of the tiny package with another manifest."""

    def make(change: Change) -> Path:
        rewrite(package_copy, change)
        return package_copy

    return make


@pytest.fixture
def edit_graph(package_copy: Path) -> Callable[[str, Callable[[onnx.ModelProto], None]], Path]:
    """A copy of the tiny package whose graph of one component was edited; weights are in the file then."""

    def make(component: str, edit: Callable[[onnx.ModelProto], None]) -> Path:
        file = package_copy / component / "model.onnx"
        model = onnx.load(file)
        edit(model)
        onnx.save(model, file)

        def update(manifest: dict[str, Any]) -> None:
            entry = manifest["components"][component]
            for key, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
                for port, value in zip(entry[key], values, strict=True):
                    port["shape"] = [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]

        rewrite(package_copy, update)
        return package_copy

    return make


@pytest.fixture
def with_unet(package_copy: Path) -> Callable[[UNet2DConditionModel], Path]:
    """A copy of the tiny package with another U-Net, of a fixed batch of 1 and pictures of 64x64."""

    def make(unet: UNet2DConditionModel) -> Path:
        inputs = {
            "sample": torch.zeros(1, unet.config.in_channels, 8, 8),
            "timestep": torch.tensor([1]),
            "encoder_hidden_states": torch.zeros(1, 77, unet.config.cross_attention_dim),
        }
        if unet.config.time_cond_proj_dim:
            inputs["timestep_cond"] = torch.zeros(1, unet.config.time_cond_proj_dim)
        shutil.rmtree(package_copy / "unet")
        (package_copy / "unet").mkdir()
        program = torch.onnx.export(
            _Positional(unet).eval(), tuple(inputs.values()), input_names=list(inputs), output_names=["out_sample"], dynamo=True,
            opset_version=20, verbose=False,
        )
        program.save(package_copy / "unet" / "model.onnx", external_data=False)

        def update(manifest: dict[str, Any]) -> None:
            ports = [{"name": k, "dtype": str(v.dtype).removeprefix("torch."), "shape": list(v.shape)} for k, v in inputs.items()]
            manifest["components"]["unet"] |= {"inputs": ports, "data": "", "file": "unet/model.onnx"}
            others = {name: entry for name, entry in manifest["files"].items() if not name.startswith("unet/")}
            manifest["files"] = {**others, "unet/model.onnx": {"bytes": 0, "sha256": ""}}

        rewrite(package_copy, update)
        return package_copy

    return make


class _Positional(torch.nn.Module):
    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, timestep_cond: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond).sample


def small_unet(seed: int, **others: Any) -> UNet2DConditionModel:
    """A seeded random U-Net of two blocks that reads the tiny text encoder."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=96, attention_head_dim=2, **others,
    ).eval()  # fmt: skip


@pytest.fixture
def make_unet() -> Callable[..., UNet2DConditionModel]:
    return small_unet


@pytest.fixture(scope="session")
def torch_components(tiny_checkpoint: Path) -> dict[str, Any]:
    """The embedded model's modules in float32, as diffusers loads them."""
    return StableDiffusionPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float32, safety_checker=None).components


@pytest.fixture
def torch_pipeline(torch_components: dict[str, Any]) -> StableDiffusionPipeline:
    """diffusers' pipeline on the embedded model. Its components serve the other pipelines too; its scheduler may be exchanged."""
    pipeline = StableDiffusionPipeline(**torch_components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
