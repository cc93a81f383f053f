"""The gate, proved by what it must stop: every fault is put into a copy of a healthy package, and named by what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from PIL import Image

from export.parity import Found, check_component, check_package, compare, package_trajectory
from export.reference import Oracle, Trajectory, ask
from export.run import Request, export
from export.weights import open_checkpoint
from runtime.errors import CheckFailed
from runtime.manifest import Package
from runtime.pipelines import stable_diffusion
from runtime.providers import provider
from runtime.session import Sessions

PROMPT_IS_NOT_HEARD = (r"'unet' hears the prompt 0\.000 times as loud as in torch at step 1 of 20: the condition does not arrive as it "
                       "should")
BLOCK = "model.down_blocks.0.attentions.0.transformer_blocks.0"
Damage = Callable[[Path], None]


@pytest.fixture(scope="session")
def oracle(tiny_checkpoint: Path, tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """What torch says of the embedded model: asked once."""
    work = tmp_path_factory.mktemp("oracle")
    return ask(open_checkpoint(str(tiny_checkpoint), None, work), Package.open(tiny_package).manifest.pipeline, "full", work)


@pytest.fixture(scope="session")
def walk_only(oracle: Oracle) -> Oracle:
    """The trajectory's gate alone."""
    return replace(oracle, components={})


@pytest.fixture
def damaged(tiny_package: Path, tmp_path: Path) -> Callable[[Damage], Package]:
    def make(damage: Damage) -> Package:
        copy = faults.copied(tiny_package, tmp_path / "damaged")
        damage(copy)
        return Package.open(copy)

    return make


def graph(component: str, change: faults.Change) -> Damage:
    return lambda package: faults.edit_graph(package, component, change)


def manifest(change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda package: faults.edit_manifest(package, change)


# --- a healthy package ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def healthy(tiny_package: Path, oracle: Oracle) -> Found:
    return check_package(Package.open(tiny_package), oracle)


def test_a_healthy_package_passes_with_room_to_spare(healthy: Found, oracle: Oracle) -> None:
    """Two float32 implementations of the same sums differ by rounding: some 2^-24 sqrt(terms) of the values, 110 to 140 dB."""
    assert set(healthy.components) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    for name, figures in healthy.components.items():
        assert 100 < figures["snr_db"] < 160, name  # 400 would say that nothing was compared
        assert 0 < figures["max_abs"] < 1e-3, name
    walked = healthy.trajectory
    assert len(walked["snr_db_per_step"]) == len(oracle.trajectory.timesteps) == 20
    assert all(80 < decibel < 160 for decibel in walked["snr_db_per_step"])
    assert walked["picture_max_diff"] <= 1
    assert walked["prompt_sensitivity"] == pytest.approx(1, abs=1e-3)
    assert walked["limits"] == {"component_snr_db": 90.0, "step_snr_db": 50.0, "picture": 2, "sensitivity": 0.02}
    assert healthy.picture.shape == (64, 64, 3)


def test_the_command_writes_down_what_it_measured(healthy: Found, tiny_package: Path) -> None:
    """A check of the finished package finds again what the export recorded: both ask the same."""
    manifest = Package.open(tiny_package).manifest
    for name, figures in healthy.components.items():
        recorded = manifest.components[name].parity
        assert recorded is not None
        assert recorded["snr_db"] == pytest.approx(figures["snr_db"], abs=3), name  # other threads sum in another order
    assert manifest.trajectory_parity is not None
    assert manifest.trajectory_parity.keys() == healthy.trajectory.keys()
    assert manifest.trajectory_parity["picture_max_diff"] <= 1
    recorded_picture = np.asarray(Image.open(tiny_package / "parity" / "onnx.png")).astype(int)
    assert np.abs(recorded_picture - healthy.picture).max() <= 1


def test_a_dynamic_package_is_asked_at_sides_that_it_was_not_traced_at(oracle: Oracle) -> None:
    assert oracle.components["unet"][0]["sample"].shape == (1, 4, 4, 5)
    assert oracle.components["vae_encoder"][0]["sample"].shape == (1, 3, 32, 40)
    assert oracle.walk.latents.shape == (1, 4, 8, 8)


# --- faults that the components' check stops -----------------------------------------------------------------------------------------

SNR = r"has an SNR of -?[\d.]+ dB where 90 are asked for"


@pytest.mark.parametrize(("damage", "message"), [
    pytest.param(graph("unet", faults.zeroed("model.down_blocks.0.resnets.0.conv1.bias")),
                 f"'unet' differs from torch: its 'out_sample' {SNR}", id="dropped bias: unet"),
    pytest.param(graph("vae_decoder", faults.zeroed("decoder.conv_in.bias")),
                 f"'vae_decoder' differs from torch: its 'sample' {SNR}", id="dropped bias: vae_decoder"),
    pytest.param(graph("vae_encoder", faults.zeroed("encoder.conv_in.bias")),
                 f"'vae_encoder' differs from torch: its 'latent_parameters' {SNR}", id="dropped bias: vae_encoder"),
    pytest.param(graph("text_encoder", faults.zeroed("model.encoder.layers.0.mlp.fc1.bias")),
                 f"'text_encoder' differs from torch: its 'last_hidden_state' {SNR}", id="dropped bias: text_encoder"),
    pytest.param(graph("unet", faults.swapped(f"{BLOCK}.attn2.to_k.weight.transpose", f"{BLOCK}.attn2.to_v.weight.transpose")),
                 f"'unet' differs from torch: its 'out_sample' {SNR}", id="keys and values swapped"),
    pytest.param(graph("text_encoder", faults.silenced("last_hidden_state")),
                 "'text_encoder' gives a constant 'last_hidden_state' where torch's varies", id="condition zeroed"),
    pytest.param(graph("unet", faults.silenced("encoder_hidden_states")),
                 f"'unet' differs from torch: its 'out_sample' {SNR}", id="condition ignored"),
    pytest.param(graph("unet", faults.not_a_number("model.conv_in.weight")), "'unet' gives NaN or infinity in 'out_sample'", id="NaN"),
    pytest.param(graph("vae_decoder", faults.zeroed("decoder.conv_out.weight", "decoder.conv_out.bias")),
                 "'vae_decoder' gives a constant 'sample' where torch's varies", id="flat picture"),
])
def test_a_damaged_component_is_named(damage: Damage, message: str, damaged: Callable[[Damage], Package], oracle: Oracle) -> None:
    with pytest.raises(CheckFailed, match=message):
        check_package(damaged(damage), oracle)


# --- faults that only the walk can see, and the same ones by the walk alone ------------------------------------------------------------


@pytest.mark.parametrize(("damage", "message"), [
    pytest.param(manifest(lambda made: made["pipeline"].update(scaling_factor=1.1 * made["pipeline"]["scaling_factor"])),
                 r"'vae_decoder' makes another picture of the same latents: a pixel differs by \d+ of 255 where 2 are allowed, though the "
                 r"latents agree to \d+ dB: is the scaling factor right\?", id="scaling factor"),
    pytest.param(manifest(lambda made: made["scheduler"].update(steps_offset=made["scheduler"]["steps_offset"] - 1)),
                 "'scheduler' is off: at step 1 of 20 it stands at timestep 950 where diffusers stands at 951", id="timestep off by one"),
    pytest.param(manifest(lambda made: made["scheduler"].update(beta_end=1.01 * made["scheduler"]["beta_end"])),
                 r"the guidance or the 'scheduler' leaves torch's trajectory at step \d+ of 20: the latents have an SNR of [\d.]+ dB where "
                 "50 are asked for", id="noise schedule"),
    pytest.param(lambda package: faults.edit_file(package, "tokenizer/merges.txt", lambda text: text.splitlines()[0] + "\n"),
                 "'tokenizer' gives other ids than transformers for the prompt", id="tokenizer"),
    pytest.param(graph("unet", faults.zeroed("model.time_embedding.linear_2.bias")),
                 r"'unet' (leaves torch's trajectory|hears the prompt)", id="dropped bias: unet"),
    pytest.param(graph("unet", faults.swapped(f"{BLOCK}.attn2.to_k.weight.transpose", f"{BLOCK}.attn2.to_v.weight.transpose")),
                 r"'unet' (leaves torch's trajectory|hears the prompt)", id="keys and values swapped"),
    pytest.param(graph("unet", faults.silenced("encoder_hidden_states")), PROMPT_IS_NOT_HEARD, id="condition ignored"),
    pytest.param(graph("text_encoder", faults.silenced("last_hidden_state")), PROMPT_IS_NOT_HEARD, id="condition zeroed"),
    pytest.param(graph("unet", faults.not_a_number("model.conv_in.weight")), r"'unet' gave NaN at step 1 of 20", id="NaN"),
    pytest.param(graph("vae_decoder", faults.zeroed("decoder.conv_out.weight")), "'vae_decoder' made picture 0 one flat colour",
                 id="flat picture"),
])
def test_the_walk_alone_stops(damage: Damage, message: str, damaged: Callable[[Damage], Package], walk_only: Oracle) -> None:
    with pytest.raises(CheckFailed, match=message):
        check_package(damaged(damage), walk_only)


def test_guidance_the_wrong_way_round(tiny_package: Path, walk_only: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    right = stable_diffusion.guide

    def wrong(unconditional: np.ndarray | None, conditional: np.ndarray, scale: float, rescale: float = 0.0) -> np.ndarray:
        assert unconditional is not None
        return right(conditional, unconditional, scale, rescale)

    monkeypatch.setattr(stable_diffusion, "guide", wrong)
    with pytest.raises(CheckFailed, match="the guidance or the 'scheduler' leaves torch's trajectory at step 1 of 20"):
        check_package(Package.open(tiny_package), walk_only)


def test_prompts_in_the_wrong_order(tiny_package: Path, walk_only: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deviation of (conditioned - unconditioned) stays what it was: the latents tell."""
    right = stable_diffusion.StableDiffusion.encode_prompts
    monkeypatch.setattr(stable_diffusion.StableDiffusion, "encode_prompts",
                        lambda self: {name: rows[::-1] for name, rows in right(self).items()})
    with pytest.raises(CheckFailed, match="'unet' leaves torch's trajectory at step 1 of 20"):
        check_package(Package.open(tiny_package), walk_only)


# --- where the limits lie ------------------------------------------------------------------------------------------------------------


def noisy(array: np.ndarray, decibel: float, seed: int = 0) -> np.ndarray:
    """`array` with normal noise of exactly this SNR, float32."""
    noise = np.random.default_rng(seed).standard_normal(array.shape)
    noise *= np.linalg.norm(array) / np.linalg.norm(noise) / 10 ** (decibel / 20)
    return (array + noise).astype(np.float32)


class Answers:
    """Sessions that answer what they are told to."""

    def __init__(self, outputs: dict[str, np.ndarray]) -> None:
        self.outputs = outputs

    def run(self, *_: object) -> dict[str, np.ndarray]:
        return self.outputs


def test_a_component_passes_above_90_db_and_not_below(oracle: Oracle) -> None:
    inputs, expected = oracle.components["text_encoder"]
    good = {name: noisy(array, 90.2) for name, array in expected.items()}
    assert check_component(Answers(good), "text_encoder", inputs, expected)["snr_db"] == pytest.approx(90.2, abs=0.05)
    for name in expected:  # every output counts
        with pytest.raises(CheckFailed, match=f"'text_encoder' differs from torch: its '{name}' has an SNR of 89.8 dB where 90 are asked"):
            check_component(Answers({**good, name: noisy(expected[name], 89.8)}), "text_encoder", inputs, expected)


def test_a_component_has_torchs_shapes_and_verdicts() -> None:
    flags = {"has_nsfw_concepts": np.array([False, True])}
    assert check_component(Answers(flags), "safety_checker", {}, flags)["max_abs"] == 0
    with pytest.raises(CheckFailed, match="'safety_checker' gives another 'has_nsfw_concepts' than torch"):
        check_component(Answers({"has_nsfw_concepts": np.array([False, False])}), "safety_checker", {}, flags)
    with pytest.raises(CheckFailed, match=r"'unet' gives 'out_sample' the shape \[1, 4, 8, 8\] where torch gives \[2, 4, 8, 8\]"):
        check_component(Answers({"out_sample": np.ones((1, 4, 8, 8))}), "unet", {}, {"out_sample": np.ones((2, 4, 8, 8))})


@pytest.mark.parametrize("index", [0, 10, 19])
def test_a_step_passes_above_50_db_and_not_below(index: int, oracle: Oracle) -> None:
    def off(decibel: float) -> Trajectory:
        latents = list(oracle.trajectory.latents)
        latents[index] = noisy(latents[index], decibel)
        return replace(oracle.trajectory, latents=latents)

    found = compare(oracle.trajectory, off(50.2), oracle.walk)
    assert found["snr_db_per_step"][index] == pytest.approx(50.2, abs=0.05)
    with pytest.raises(CheckFailed, match=f"leaves torch's trajectory at step {index + 1} of 20: the latents have an SNR of 49.8 dB"):
        compare(oracle.trajectory, off(49.8), oracle.walk)


@pytest.mark.parametrize("index", [0, 10, 19])
def test_the_prompt_is_heard_within_two_percent(index: int, oracle: Oracle) -> None:
    def heard(ratio: float) -> Trajectory:
        predicted = list(oracle.trajectory.predicted)
        unconditional, conditional = predicted[index]
        predicted[index] = unconditional, unconditional + np.float32(ratio) * (conditional - unconditional)
        return replace(oracle.trajectory, predicted=predicted)

    for ratio in (0.981, 1.019):
        assert compare(oracle.trajectory, heard(ratio), oracle.walk)["prompt_sensitivity"] == pytest.approx(ratio, abs=5e-4)
    for ratio in (0.979, 1.021):
        with pytest.raises(CheckFailed, match=f"'unet' hears the prompt {ratio} times as loud as in torch at step {index + 1} of 20"):
            compare(oracle.trajectory, heard(ratio), oracle.walk)


def test_a_pixel_may_differ_by_two(oracle: Oracle) -> None:
    def off(difference: int) -> Trajectory:
        picture = oracle.trajectory.picture.copy()
        before = int(picture[5, 7, 1])
        picture[5, 7, 1] = before + difference if before < 128 else before - difference
        return replace(oracle.trajectory, picture=picture)

    assert compare(oracle.trajectory, off(2), oracle.walk)["picture_max_diff"] == 2
    with pytest.raises(CheckFailed, match="'vae_decoder' makes another picture of the same latents: a pixel differs by 3 of 255 where 2"):
        compare(oracle.trajectory, off(3), oracle.walk)


def test_a_step_that_is_missing(oracle: Oracle) -> None:
    taken = oracle.trajectory
    with pytest.raises(CheckFailed, match="'scheduler' takes 19 steps where diffusers takes 20"):
        compare(taken, replace(taken, timesteps=taken.timesteps[:-1], latents=taken.latents[:-1]), oracle.walk)


def test_a_checkpoint_that_does_not_hear_its_prompt(oracle: Oracle) -> None:
    deaf = replace(oracle.trajectory, predicted=[(predicted, predicted) for _, predicted in oracle.trajectory.predicted])
    with pytest.raises(CheckFailed, match="'unet' of the checkpoint itself does not hear the prompt"):
        compare(deaf, deaf, oracle.walk)


def test_components_at_their_limit_stay_inside_the_walks(tiny_package: Path, oracle: Oracle) -> None:
    """The limits fit together: a U-Net that is 90 dB off at every call keeps the walk above 50 dB."""

    class Noisy(Sessions):
        def run(self, component: str, inputs: Any) -> dict[str, np.ndarray]:
            outputs = super().run(component, inputs)
            if component != "unet":
                return outputs
            return {name: noisy(array, 90, seed=int(inputs["timestep"])) for name, array in outputs.items()}

    with Noisy(Package.open(tiny_package), provider("cpu")) as sessions:
        found = compare(oracle.trajectory, package_trajectory(sessions, oracle.walk), oracle.walk)
    assert 50 < min(found["snr_db_per_step"]) < 95


# --- v-prediction, and a static package ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd21(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Random weights in the structure of SD 2.1, static at 64x64; its export is checked in full."""
    out = tmp_path_factory.mktemp("v-prediction") / "sd21"
    return export(Request("tiny-sd21", out, height=64, width=64, dynamic=False, check="full"), lambda _: None)


def test_v_prediction_passes(sd21: Package) -> None:
    assert sd21.manifest.scheduler["prediction_type"] == "v_prediction"
    assert all(component.parity is not None and component.parity["snr_db"] > 100 for component in sd21.manifest.components.values())
    assert min(sd21.manifest.trajectory_parity["snr_db_per_step"]) > 60
    assert (sd21.path / "parity" / "torch.png").is_file()
    assert (sd21.path / "parity" / "onnx.png").is_file()


def test_v_taken_for_noise(sd21: Package, tmp_path: Path) -> None:
    """The components are what they were: only the walk can tell."""
    checkpoint = open_checkpoint("tiny-sd21", None, tmp_path)
    asked = ask(checkpoint, sd21.manifest.pipeline, "quick", tmp_path)
    assert check_package(sd21, asked).trajectory["steps"] == 2
    copy = faults.copied(sd21.path, tmp_path / "damaged")
    faults.edit_manifest(copy, lambda made: made["scheduler"].update(prediction_type="epsilon"))
    with pytest.raises(CheckFailed, match="the guidance or the 'scheduler' leaves torch's trajectory at step 1 of"):
        check_package(Package.open(copy), replace(asked, components={}))
