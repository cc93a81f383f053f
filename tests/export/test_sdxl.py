"""SDXL, its refiner, SDXL-Turbo, SD-Turbo and LCM against diffusers' own pipelines: components, walks and pictures of models that have
their structure and seeded weights; for both targets that a CPU runs."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import faults
import numpy as np
import onnx
import pytest
import torch

from export import package
from export.architecture import of_alias
from export.families.unet import time_ids
from export.parity import Found, check_package, compare, package_trajectory
from export.reference import Oracle, ask, diffusers_pipeline, torch_trajectory, walk
from export.run import Request, export
from export.weights import Checkpoint, open_checkpoint
from graph_passes.files import load
from graph_passes.pipelines import for_target
from graph_passes.step import run
from runtime.compare import snr_db
from runtime.errors import CheckFailed, InputError
from runtime.manifest import NAME, Package
from runtime.pipelines.base_and_refiner import base_and_refiner
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.size_conditioning import SizeConditioning
from runtime.pipelines.text_to_image import text_to_image
from runtime.providers import provider
from runtime.session import Sessions

PROMPT = "a photo of an astronaut riding a horse on mars"
SIZES = {
    "sdxl": SizeConditioning((512, 768), (0, 128), (32, 48), None, (256, 128), (2, 4), (16, 8)),
    "refiner": SizeConditioning((512, 768), (0, 128), None, 7.5, (256, 128), (2, 4), None, 1.0),
    "lcm": SizeConditioning(),
}
BATCH, TOKENS, LATENTS = "batch_size", "sequence_length", ("height", "width")


@dataclass(frozen=True)
class Made:
    """A package, the checkpoint that it was made of, and what torch says of it."""

    package: Package
    checkpoint: Checkpoint
    oracle: Oracle


def make(alias: str, portable: Path, folder: Path) -> Made:
    opened, checkpoint = Package.open(portable), open_checkpoint(alias, None, folder)
    return Made(opened, checkpoint, ask(checkpoint, opened.manifest.pipeline, "full", folder))


@pytest.fixture(scope="module")
def sdxl(sdxl_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("tiny-sdxl", sdxl_package, tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def refiner(refiner_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("tiny-sdxl-refiner", refiner_package, tmp_path_factory.mktemp("refiner"))


@pytest.fixture(scope="module")
def sdxl_turbo(turbo_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("tiny-sdxl-turbo", turbo_package, tmp_path_factory.mktemp("turbo"))


@pytest.fixture(scope="module")
def lcm(lcm_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("tiny-lcm", lcm_package, tmp_path_factory.mktemp("lcm"))


@pytest.fixture(params=["sdxl", "refiner", "sdxl_turbo", "lcm"])
def made(request: pytest.FixtureRequest) -> Made:
    return request.getfixturevalue(request.param)


def for_cpu(portable: Package, folder: Path) -> Package:
    """The package with its graphs rewritten for the target cpu."""
    copy = faults.copied(portable.path, folder)
    entries = {}
    for name, entry in portable.manifest.components.items():
        model = load(portable.file(name))
        run(model, for_target("cpu"))
        for stale in (copy / name).glob("model.onnx*"):
            stale.unlink()
        file, data = package.write_graph(copy, name, model)
        ops = collections.Counter(node.op_type for node in model.graph.all_nodes() if node.domain == package.CUSTOM_OPS_DOMAIN)
        entries[name] = replace(entry, file=file, data=data, custom_ops=dict(ops))
    (copy / NAME).unlink()
    package.finish(copy, replace(portable.manifest, target="cpu", components=entries))
    return Package.open(copy)


# --- parity --------------------------------------------------------------------------------------------------------------------------


def require_room(found: Found, made: Made) -> None:
    """Rounding alone: 110 to 140 dB of a component, and some decibels less after every step's guidance. The sines of a picture's sizes,
    numbers up to 1024, keep ten bits less: from 95 dB on."""
    components = [name for name, _ in made.oracle.components.items()]
    assert list(found.components) == components
    for name, figures in found.components.items():
        assert 95 < figures["snr_db"] < 160, name
    assert all(80 < decibel < 160 for decibel in found.trajectory["snr_db_per_step"])
    assert found.trajectory["picture_max_diff"] <= 1
    assert found.trajectory["prompt_sensitivity"] == pytest.approx(1, abs=1e-3)


def test_the_portable_package_is_the_model(made: Made) -> None:
    require_room(check_package(made.package, made.oracle), made)


@pytest.mark.parametrize("model", ["sdxl", "refiner", "lcm"])  # SDXL-Turbo's graphs are SDXL's
def test_the_package_for_a_cpu_is_the_model(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """And hears every option as the portable one does, which tests/runtime/pipelines hold against diffusers one by one."""
    made: Made = request.getfixturevalue(model)
    rewritten = for_cpu(made.package, tmp_path / "cpu")
    assert rewritten.manifest.components["unet"].custom_ops["GroupNorm"] > 0
    require_room(check_package(rewritten, made.oracle), made)
    asked = Settings.one_prompt(PROMPT, 3, 2, negative="blue", steps=4, guidance_rescale=0.5, sizes=SIZES[model])
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    agree(image_to_image, rewritten, made.package, replace(asked, image=image, strength=0.7))
    if model != "refiner":
        agree(text_to_image, rewritten, made.package, asked)
    if model == "sdxl":
        with_refiner = partial(base_and_refiner, refiner=Package.open(request.getfixturevalue("refiner_package")), handover=0.5)
        agree(with_refiner, rewritten, made.package, asked)
    if model == "refiner":
        after_base = partial(base_and_refiner, Package.open(request.getfixturevalue("sdxl_package")), handover=0.5)
        agree(after_base, rewritten, made.package, asked)


def agree(task: Callable[..., Result], package: Package, other: Package, settings: Settings) -> None:
    """Both packages end with the same latents, but for rounding: see `require_room`."""
    assert snr_db(task(other, settings=settings).latents, task(package, settings=settings).latents) > 70


@pytest.mark.parametrize(("model", "calls", "rows"), [("sdxl", 20, 2), ("refiner", 10, 2), ("sdxl_turbo", 4, 2), ("lcm", 4, 2)])
def test_a_walk_has_the_steps_of_its_kind(model: str, calls: int, rows: int, request: pytest.FixtureRequest) -> None:
    """The refiner begins with a picture, of which half the steps are left; guided walks predict with and without the prompt, and those
    of models that take no guidance two pictures, one of them of no prompt."""
    oracle = request.getfixturevalue(model).oracle
    assert len(oracle.trajectory.predicted) == len(oracle.trajectory.timesteps) == calls
    assert len(oracle.trajectory.latents[0]) == (1 if model in ("sdxl", "refiner") else 2)
    assert sum(len(part) for part in oracle.trajectory.predicted[0]) == rows
    assert (oracle.walk.image is not None) == (model == "refiner")


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("model", ["sdxl_turbo", "lcm"])
def test_few_steps(model: str, steps: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    made: Made = request.getfixturevalue(model)
    taken = walk(made.checkpoint, PROMPT, steps, made.package.manifest.pipeline["guidance"], 64, 64, seed=steps)
    with Sessions(made.package, provider("cpu")) as sessions:
        found = compare(torch_trajectory(made.checkpoint, taken, tmp_path), package_trajectory(sessions, taken), taken)
    assert len(found["snr_db_per_step"]) == steps
    assert min(found["snr_db_per_step"]) > 80


@pytest.mark.parametrize("steps", [1, 4])
def test_sd_turbo_is_stable_diffusion_with_another_scheduler(steps: int, tiny_package: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its scheduler and its lack of guidance, on the embedded model."""
    scheduler = of_alias("sd-turbo", "sd", "sd-turbo.json").scheduler
    checkpoint = replace(open_checkpoint(str(tiny_checkpoint), None, tmp_path), scheduler=scheduler)
    copy = faults.copied(tiny_package, tmp_path / "turbo")
    faults.edit_manifest(copy, lambda made: made["scheduler"].update(scheduler))
    taken = walk(checkpoint, PROMPT, steps, 0.0, 64, 64)
    with Sessions(Package.open(copy), provider("cpu")) as sessions:
        reference = torch_trajectory(checkpoint, taken, tmp_path)
        found = compare(reference, package_trajectory(sessions, taken), taken)
    assert reference.timesteps[0] == 999  # trailing: from pure noise
    assert min(found["snr_db_per_step"]) > 80


def test_the_refiner_goes_on_where_the_base_stops(sdxl: Made, refiner: Made, tmp_path: Path) -> None:
    """Both packages in one command against diffusers' `denoising_end` and `denoising_start`."""
    steps, handover, seed = 10, 0.7, 5
    taken = walk(sdxl.checkpoint, PROMPT, steps, 5.0, 64, 64)
    call: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": steps, "guidance_scale": 5.0}
    generator = torch.Generator().manual_seed(seed)
    first = diffusers_pipeline(sdxl.checkpoint, taken, tmp_path / "base")
    latents = first(height=64, width=64, denoising_end=handover, output_type="latent", generator=generator, **call).images
    second = diffusers_pipeline(refiner.checkpoint, taken, tmp_path / "refiner")
    expected = second(image=latents, denoising_start=handover, output_type="np", generator=generator, **call).images[0]
    settings = Settings.one_prompt(PROMPT, seed, steps=steps, guidance=5.0, height=64, width=64)
    result = base_and_refiner(sdxl.package, refiner.package, settings, handover)
    assert len(result.timings["unet"]) == steps
    assert snr_db(expected, result.images[0] / 255) > 30  # a picture of 8 bits
    assert np.abs((expected * 255).round() - result.images[0]).max() <= 2


# --- faults that only these models can have ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "message"), [
    pytest.param(lambda made: made["pipeline"]["text_encoders"][1].update(embeddings="hidden_states.3"), "'unet' (leaves|hears)",
                 id="the last state for the penultimate"),
    pytest.param(lambda made: made["pipeline"].update(force_zeros_for_empty_prompt=False), "'unet' (leaves|hears)",
                 id="an empty prompt for no prompt"),
    pytest.param(lambda made: made["pipeline"]["text_encoders"][1].update(tokenizer="tokenizer"), "'tokenizer_2'",
                 id="the first tokenizer for the second"),
    pytest.param(lambda made: made["scheduler"].update(timestep_spacing="trailing"), "'scheduler' is off", id="another spacing"),
])
def test_the_walk_stops(change: Callable[[dict[str, Any]], object], message: str, sdxl: Made, tmp_path: Path) -> None:
    copy = faults.copied(sdxl.package.path, tmp_path / "damaged")
    faults.edit_manifest(copy, change)
    with pytest.raises(CheckFailed, match=message):
        check_package(Package.open(copy), replace(sdxl.oracle, components={}))


@pytest.mark.parametrize("name", ["text_embeds", "time_ids"])
def test_a_condition_that_is_ignored(name: str, sdxl: Made, tmp_path: Path) -> None:
    copy = faults.copied(sdxl.package.path, tmp_path / "damaged")
    faults.edit_graph(copy, "unet", faults.silenced(name))
    oracle = replace(sdxl.oracle, components={"unet": sdxl.oracle.components["unet"]})
    with pytest.raises(CheckFailed, match="'unet' differs from torch: its 'out_sample' has an SNR of"):
        check_package(Package.open(copy), oracle)


# --- the graphs ----------------------------------------------------------------------------------------------------------------------


def test_the_interface_of_sdxl_is_optimums(sdxl: Made) -> None:
    def ports(name: str) -> tuple[dict[str, tuple[int | str, ...]], dict[str, tuple[int | str, ...]]]:
        entry = sdxl.package.manifest.components[name]
        return {port.name: port.shape for port in entry.inputs}, {port.name: port.shape for port in entry.outputs}

    ids = {"input_ids": (BATCH, TOKENS)}
    states = {f"hidden_states.{index}": (BATCH, TOKENS, 32) for index in range(3)}
    assert ports("text_encoder") == (ids, {"last_hidden_state": (BATCH, TOKENS, 32), "pooler_output": (BATCH, 32), **states})
    states = {f"hidden_states.{index}": (BATCH, TOKENS, 64) for index in range(4)}
    assert ports("text_encoder_2") == (ids, {"text_embeds": (BATCH, 48), "last_hidden_state": (BATCH, TOKENS, 64), **states})
    inputs, outputs = ports("unet")
    assert list(inputs) == ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]
    assert inputs == {"sample": (BATCH, 4, *LATENTS), "timestep": (), "encoder_hidden_states": (BATCH, TOKENS, 96),
                      "text_embeds": (BATCH, 48), "time_ids": (BATCH, 6)}
    assert outputs == {"out_sample": (BATCH, 4, *LATENTS)}


def test_the_refiner_takes_a_score_and_lcm_a_guidance(refiner: Made, lcm: Made) -> None:
    shapes = {port.name: port.shape for port in refiner.package.manifest.components["unet"].inputs}
    assert shapes["time_ids"] == (BATCH, 5)
    assert "text_encoder" not in refiner.package.manifest.components
    assert not (refiner.package.path / "tokenizer").exists()
    assert {port.name: port.shape for port in lcm.package.manifest.components["unet"].inputs}["timestep_cond"] == (BATCH, 32)


@pytest.mark.parametrize(("model", "group_norms", "convolutions", "transformers"), [
    ("sdxl", 46, (38, 2), 17), ("refiner", 56, (49, 3), 22)])
def test_every_fusion_site_is_there(model: str, group_norms: int, convolutions: tuple[int, int], transformers: int,
                                    request: pytest.FixtureRequest) -> None:
    """Norms and convolutions are as many as in the published models, where the transformers' blocks are fewer: 70 and 44 there."""
    made: Made = request.getfixturevalue(model)
    nodes = onnx.load(made.package.file("unet")).graph.node
    count = collections.Counter(node.op_type for node in nodes)
    assert count["InstanceNormalization"] == group_norms
    assert count["LayerNormalization"] == 3 * transformers
    assert count["Softmax"] == 2 * transformers
    assert count["Gelu"] + count["Erf"] == transformers
    strides = collections.Counter(_convolution(node) for node in nodes if node.op_type == "Conv")
    assert (strides[3, 1], strides[3, 2]) == convolutions


def _convolution(node: onnx.NodeProto) -> tuple[int, int]:
    """Side of the kernel, and the stride."""
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    return attributes["kernel_shape"][0], attributes["strides"][0]


@pytest.mark.parametrize(("large", "small"), [("sdxl", "tiny-sdxl"), ("sdxl-turbo", "tiny-sdxl-turbo"),
                                              ("sdxl-refiner", "tiny-sdxl-refiner"), ("lcm", "tiny-lcm")])
def test_the_small_models_have_the_structure_of_the_large(large: str, small: str) -> None:
    full, tiny = (of_alias(name, "", f"{name}.json") for name in (large, small))
    assert tiny.scheduler == full.scheduler
    assert tiny.options == full.options
    assert tiny.pad_tokens == full.pad_tokens
    assert set(tiny.configs) == set(full.configs) - {"safety_checker"}
    for key in ("down_block_types", "up_block_types", "layers_per_block", "use_linear_projection", "addition_embed_type"):
        assert tiny.configs["unet"].get(key) == full.configs["unet"].get(key)
    assert time_ids(tiny.configs) == time_ids(full.configs) == {"sdxl-refiner": 5, "lcm": 0}.get(large, 6)
    assert tiny.configs["vae"].get("force_upcast") == full.configs["vae"].get("force_upcast")


# --- packages that others open -------------------------------------------------------------------------------------------------------


def test_the_index_is_one_that_diffusers_reads(made: Made) -> None:
    index = diffusers.DiffusionPipeline.load_config(made.package.path)
    wanted = {"tiny-sdxl-refiner": "StableDiffusionXLImg2ImgPipeline", "tiny-lcm": "LatentConsistencyModelPipeline"}
    assert index["_class_name"] == wanted.get(made.checkpoint.alias, "StableDiffusionXLPipeline")
    assert index["scheduler"][1] == made.checkpoint.scheduler["_class_name"]
    if made.checkpoint.family != "sd":
        assert (index["text_encoder"][0] is None) == (made.checkpoint.family == "sdxl-refiner")
        assert index.get("requires_aesthetics_score", False) == (made.checkpoint.family == "sdxl-refiner")
        assert index["force_zeros_for_empty_prompt"] == (made.checkpoint.family == "sdxl")


def test_a_u_net_of_other_sizes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint("tiny-sdxl", None, tmp_path)
    checkpoint.configs["unet"]["projection_class_embeddings_input_dim"] += 16
    monkeypatch.setattr("export.run.open_checkpoint", lambda *_, **__: checkpoint)
    out = tmp_path / "packages" / "out"
    with pytest.raises(InputError, match="the U-Net of 'tiny-sdxl' takes 7 numbers for the sizes of a picture, where SDXL's takes 6 and "
                                         "its refiner's 5: it is of another architecture"):
        export(Request("tiny-sdxl", out), lambda _: None)
    assert list(out.parent.iterdir()) == []
