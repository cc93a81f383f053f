"""optimum's pipelines run what we export and make diffusers' pictures of it; our passes take what optimum exports and keep its results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from optimum.onnxruntime import ORTStableDiffusionImg2ImgPipeline, ORTStableDiffusionPipeline, ORTStableDiffusionXLPipeline

GRAPHS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
PROMPTS = ["a red circle above a blue square on a yellow background", "a green triangle left of a white circle on a black background"]
STEPS = 20
# The contract's bound on a picture, in grey levels, and the gate of export on graphs in float32, which whole runs stay above as well.
GREY_LEVELS = 2
SNR_DB = 90.0


@dataclass(frozen=True)
class Run:
    """Pictures [B, H, W, 3] uint8 and the latents after every step [steps, B, 4, H/8, W/8]."""

    pictures: np.ndarray
    latents: np.ndarray


def run(pipeline: Any, **call: Any) -> Run:
    latents: list[np.ndarray] = []

    def keep(_pipeline: Any, _index: int, _timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        latents.append(tensors["latents"].numpy().copy())
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(num_inference_steps=STEPS, output_type="np", callback_on_step_end=keep, **call).images
    return Run(np.round(pictures * 255).astype(np.uint8), np.stack(latents))


def snr_db(expected: np.ndarray, actual: np.ndarray) -> float:
    expected, error = expected.astype(np.float64), actual.astype(np.float64) - expected
    with np.errstate(divide="ignore"):  # equal arrays: infinite
        return float(10 * np.log10(np.square(expected).sum() / np.square(error).sum()))


def assert_same(expected: Run, actual: Run) -> None:
    assert expected.pictures.std() > 10, "a flat picture proves nothing"
    assert expected.latents.shape == actual.latents.shape
    assert snr_db(expected.latents, actual.latents) >= SNR_DB
    assert np.abs(expected.pictures.astype(int) - actual.pictures.astype(int)).max() <= GREY_LEVELS


def noise(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn((batch, 4, height // 8, width // 8), generator=torch.Generator().manual_seed(17))


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (2, 64, 128), (1, 72, 104)])
def test_text_to_image(
    package: Path, torch_text_to_image: StableDiffusionPipeline, batch: int, height: int, width: int, guidance: float
) -> None:
    call = {"prompt": PROMPTS[:batch], "guidance_scale": guidance, "height": height, "width": width}
    expected = run(torch_text_to_image, latents=noise(batch, height, width), **call)
    assert_same(expected, run(ORTStableDiffusionPipeline.from_pretrained(package), latents=noise(batch, height, width), **call))


# optimum's way on CUDA: it computes the shapes of the outputs from the names of the graph's axes. With guidance only: without it, optimum
# lets the U-Net write into the very latents that the scheduler still needs, whoever exported the graph.
def test_text_to_image_with_bound_outputs(package: Path, torch_text_to_image: StableDiffusionPipeline) -> None:
    call = {"prompt": PROMPTS, "guidance_scale": 7.5, "height": 64, "width": 128}
    expected = run(torch_text_to_image, latents=noise(2, 64, 128), **call)
    pipeline = ORTStableDiffusionPipeline.from_pretrained(package, use_io_binding=True)
    assert_same(expected, run(pipeline, latents=noise(2, 64, 128), **call))


def test_negative_prompt(package: Path, torch_text_to_image: StableDiffusionPipeline) -> None:
    call = {"prompt": PROMPTS[0], "negative_prompt": PROMPTS[1], "height": 64, "width": 64}
    expected = run(torch_text_to_image, latents=noise(1, 64, 64), **call)
    assert_same(expected, run(ORTStableDiffusionPipeline.from_pretrained(package), latents=noise(1, 64, 64), **call))


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (2, 64, 128)])
def test_image_to_image(
    package: Path, torch_image_to_image: StableDiffusionImg2ImgPipeline, batch: int, height: int, width: int
) -> None:
    image = torch.rand((batch, 3, height, width), generator=torch.Generator().manual_seed(5))
    call = {"prompt": PROMPTS[:batch], "image": image, "strength": 0.6}
    expected = run(torch_image_to_image, generator=torch.Generator().manual_seed(3), **call)
    actual = run(ORTStableDiffusionImg2ImgPipeline.from_pretrained(package), generator=torch.Generator().manual_seed(3), **call)
    assert_same(expected, actual)


@pytest.mark.parametrize("options", [{"guidance_scale": 5.0}, {"guidance_scale": 1.0}, {"negative_prompt": PROMPTS[1]},
                                     {"guidance_scale": 5.0, "original_size": (512, 768), "crops_coords_top_left": (16, 32)}])
def test_sdxl(sdxl_package: Path, torch_sdxl: StableDiffusionXLPipeline, options: dict[str, Any]) -> None:
    """Both text encoders, the penultimate states, the pooled text and the sizes reach the U-Net as diffusers has them."""
    call = {"prompt": PROMPTS[0], "height": 64, "width": 128, **options}
    expected = run(torch_sdxl, latents=noise(1, 64, 128), **call)
    ours = ORTStableDiffusionXLPipeline.from_pretrained(sdxl_package, add_watermarker=False)
    assert_same(expected, run(ours, latents=noise(1, 64, 128), **call))


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_interface_is_optimums(package: Path, optimum_export: Path, graph: str) -> None:
    ours, theirs = session(package, graph), session(optimum_export, graph)
    assert ports(ours.get_inputs()) == ports(theirs.get_inputs())
    assert ports(ours.get_outputs()) == ports(theirs.get_outputs())


@pytest.mark.parametrize("graph", GRAPHS)
def test_our_passes_keep_the_results_of_optimums_graphs(optimum_export: Path, rewritten: Path, graph: str) -> None:
    before, after = session(optimum_export, graph), session(rewritten, graph)
    assert ports(before.get_inputs()) == ports(after.get_inputs())
    assert ports(before.get_outputs()) == ports(after.get_outputs())
    assert_same_results(graph, before, after)


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_site_of_optimums_graphs_is_fused(
    optimum_export: Path, fused: Path, torch_text_to_image: StableDiffusionPipeline, graph: str
) -> None:
    """As many as torch has modules of that kind; without our kernels the bodies compute."""
    torch_model = {
        "text_encoder": torch_text_to_image.text_encoder,
        "unet": torch_text_to_image.unet,
        "vae_encoder": torch_text_to_image.vae.encoder,
        "vae_decoder": torch_text_to_image.vae.decoder,
    }[graph]
    kinds = [type(module).__name__ for module in torch_model.modules()]
    expected = {
        "fuse group norm": kinds.count("GroupNorm"),
        "fuse gelu": kinds.count("GEGLU") + kinds.count("QuickGELUActivation"),
        "fuse flash attention": kinds.count("Attention") + kinds.count("CLIPAttention"),
    }
    passes = {each["name"]: each for each in json.loads((fused / graph / "passes.json").read_text())["passes"]}
    assert {name: (passes[name]["applied"], passes[name].get("refused", [])) for name in expected} == {
        name: (count, []) for name, count in expected.items()
    }
    assert_same_results(graph, session(optimum_export, graph), session(fused, graph))


@pytest.mark.parametrize("graph", GRAPHS)
def test_our_passes_leave_fewer_nodes(optimum_export: Path, rewritten: Path, graph: str) -> None:
    assert nodes(rewritten, graph) < nodes(optimum_export, graph)


def assert_same_results(graph: str, before: onnxruntime.InferenceSession, after: onnxruntime.InferenceSession) -> None:
    for batch, height, width in [(1, 64, 64), (2, 64, 128)]:
        feeds = inputs(graph, batch, height, width)
        for expected, actual in zip(before.run(None, feeds), after.run(None, feeds), strict=True):
            assert snr_db(expected, actual) >= SNR_DB


def session(folder: Path, graph: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / graph / "model.onnx", providers=["CPUExecutionProvider"])


def ports(arguments: list[Any]) -> list[tuple[str, str, list[int | str]]]:
    return [(argument.name, argument.type, argument.shape) for argument in arguments]


def nodes(folder: Path, graph: str) -> int:
    return len(onnx.load(folder / graph / "model.onnx", load_external_data=False).graph.node)


def inputs(graph: str, batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Seeded inputs of a graph for pictures of that size, as the pipeline would feed them."""
    random = np.random.default_rng(11)
    latents = random.standard_normal((batch, 4, height // 8, width // 8), dtype=np.float32)
    return {
        "text_encoder": {"input_ids": random.integers(0, 500, (batch, 77))},
        "unet": {
            "sample": latents,
            "timestep": np.array(501, np.float32),
            "encoder_hidden_states": random.standard_normal((batch, 77, 96), dtype=np.float32),
        },
        "vae_encoder": {"sample": random.uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)},
        "vae_decoder": {"latent_sample": latents},
    }[graph]
