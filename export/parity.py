"""A package against torch: component by component, then step by step, then the picture. What differs fails, by name.

    python -m export.parity PACKAGE CHECKPOINT
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from export.limits import FP32, Limits
from export.reference import Arrays, Oracle, Trajectory, Walk, ask
from export.twin import on_cpu, rounding
from export.weights import open_checkpoint
from graph_passes.precision import OWN_HALF
from runtime.cli import command
from runtime.compare import max_abs, snr_db
from runtime.errors import CheckFailed
from runtime.manifest import Package
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.inpaint import inpaint
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image
from runtime.providers import provider
from runtime.session import Sessions, own_provider
from runtime.tokenizer import Tokenizer

SMALL = 100_000_000  # parameters: up to here the full check takes seconds, and memory is no matter


@dataclass(frozen=True)
class Found:
    """What a passed check measured: {component: {snr_db, max_abs}}, the manifest's `trajectory_parity`, and the package's picture,
    uint8 [H, W, 3]."""

    components: dict[str, dict[str, float]]
    trajectory: dict[str, Any]
    picture: np.ndarray


def check_component(sessions: Sessions, name: str, inputs: Arrays, expected: Arrays, limits: Limits = FP32) -> dict[str, float]:
    """Runs one component and holds it against torch's outputs; returns {snr_db, max_abs}, the worst over its outputs.

    Errors: CheckFailed naming the component and the output.
    """
    outputs = sessions.run(name, inputs)
    pixels = max((math.prod(array.shape[2:]) for array in (*inputs.values(), *expected.values()) if array.ndim == 4), default=1)
    asked = limits.of_component(name, pixels)
    worst = {"snr_db": float("inf"), "max_abs": 0.0}
    for output, wanted in expected.items():
        got = outputs[output]
        if got.shape != wanted.shape:
            raise CheckFailed(f"'{name}' gives '{output}' the shape {list(got.shape)} where torch gives {list(wanted.shape)}")
        if wanted.dtype == bool:
            if not np.array_equal(got, wanted):
                raise CheckFailed(f"'{name}' gives another '{output}' than torch")
            continue
        if not np.isfinite(got).all():
            raise CheckFailed(f"'{name}' gives NaN or infinity in '{output}'")
        if got.size > 1 and float(np.ptp(got)) == 0.0 and float(np.ptp(wanted)) > 0.0:
            raise CheckFailed(f"'{name}' gives a constant '{output}' where torch's varies")
        decibel = snr_db(wanted, got)
        worst = {"snr_db": min(worst["snr_db"], decibel), "max_abs": max(worst["max_abs"], max_abs(wanted, got))}
        if decibel < asked:
            raise CheckFailed(f"'{name}' differs from torch: its '{output}' has an SNR of {decibel:.1f} dB where "
                              f"{asked:.0f} are asked for (largest difference {worst['max_abs']:.2g})")
    return worst


def package_trajectory(sessions: Sessions, taken: Walk) -> Trajectory:
    """Takes a walk with the package: runtime's tokenizers, scheduler and ONNX Runtime."""
    latents: list[np.ndarray] = []
    timesteps: list[float] = []
    predicted: list[tuple[np.ndarray, np.ndarray]] = []

    def on_step(_: int, timestep: Any, after: np.ndarray, unconditional: np.ndarray | None, conditional: np.ndarray) -> None:
        timesteps.append(float(timestep))
        latents.append(after)
        # without guidance a picture of no prompt stands before that of the prompt
        predicted.append((conditional[:1], conditional[1:]) if unconditional is None else (unconditional, conditional))

    settings = Settings(taken.prompts, (taken.seed,) * len(taken.prompts), steps=taken.steps, guidance=taken.guidance, height=taken.height,
                        width=taken.width, latents=taken.latents, image=taken.image, mask=taken.mask, strength=taken.strength,
                        safety_checker=False)
    task = text_to_image if taken.image is None else image_to_image if taken.mask is None else inpaint
    result = task(sessions, settings, on_step)
    folders = [encoder["tokenizer"] for encoder in sessions.package.manifest.pipeline["text_encoders"]]
    ids = {folder: Tokenizer.from_folder(sessions.package.path / folder).encode(taken.prompt) for folder in folders}
    return Trajectory(ids, result.settings.scheduler, timesteps, latents, predicted, result.images[-1])


def compare(reference: Trajectory, made: Trajectory, taken: Walk, limits: Limits = FP32) -> dict[str, Any]:
    """Holds a package's trajectory against torch's; returns the manifest's `trajectory_parity`.

    Errors: CheckFailed naming the component that the first difference points to.
    """
    for name, ids in reference.ids.items():
        if name not in made.ids or not np.array_equal(ids, made.ids[name]):
            raise CheckFailed(f"'{name}' gives other ids than transformers for the prompt")
    if len(reference.timesteps) != len(made.timesteps):
        raise CheckFailed(f"'scheduler' takes {len(made.timesteps)} steps where diffusers takes {len(reference.timesteps)}")
    steps: list[float] = []
    ratios: list[float] = []
    for index, (wanted, got) in enumerate(zip(reference.latents, made.latents, strict=True)):
        where = f"at step {index + 1} of {len(reference.latents)}"
        expected, timestep = reference.timesteps[index], made.timesteps[index]
        if abs(expected - timestep) > 1e-3:
            raise CheckFailed(f"'scheduler' is off: {where} it stands at timestep {timestep:g} where diffusers stands at {expected:g}")
        ratios.append(_sensitivity(reference, made, index))
        if not abs(ratios[-1] - 1) <= limits.sensitivity:
            raise CheckFailed(f"'unet' hears the prompt {ratios[-1]:.3f} times as loud as in torch {where}: the condition does not arrive "
                              "as it should")
        steps.append(snr_db(wanted, got))
        if not steps[-1] >= limits.step_snr_db:
            # the first prediction is made of equal latents: what differs there already is the U-Net's
            first = min(map(snr_db, reference.predicted[0], made.predicted[0]))
            culprit = "'unet'" if first < limits.component_snr_db else "the guidance or the 'scheduler'"
            raise CheckFailed(f"{culprit} leaves torch's trajectory {where}: the latents have an SNR of {steps[-1]:.1f} dB where "
                              f"{limits.step_snr_db:.0f} are asked for")
    difference = int(np.abs(reference.picture.astype(int) - made.picture.astype(int)).max())
    if difference > limits.picture:
        raise CheckFailed(f"'vae_decoder' makes another picture of the same latents: a pixel differs by {difference} of 255 where "
                          f"{limits.picture} are allowed, though the latents agree to {steps[-1]:.0f} dB: is the scaling factor right?")
    return {
        "prompt": taken.prompt, "steps": taken.steps, "guidance": taken.guidance, "seed": taken.seed, "scheduler": made.scheduler,
        "snr_db_per_step": steps, "picture_max_diff": difference,
        "prompt_sensitivity": max(ratios, key=lambda ratio: abs(ratio - 1)), "limits": asdict(limits),
    }


def _sensitivity(reference: Trajectory, made: Trajectory, index: int) -> float:
    """std(cond - uncond) over torch's."""
    wanted, got = (float(np.std(conditional - unconditional, dtype=np.float64))
                   for unconditional, conditional in (reference.predicted[index], made.predicted[index]))
    if wanted == 0.0:
        raise CheckFailed("'unet' of the checkpoint itself does not hear the prompt: its sensitivity cannot be checked")
    return got / wanted


def check_package(made: Package, oracle: Oracle, step: Callable[[str], object] = str, limits: Limits | None = None) -> Found:
    """Holds a package against torch: every component, then the trajectory, on the CPU, or what it is compiled for in QNN's emulator. Large
    models run with their weights mapped, so that the check needs no more memory than their activations.

    What is found of float16 is found on its twin (see `round_half`). `limits`: those of the package's precision where they are not
    given. `step` is told what begins.
    Errors: CheckFailed naming the component that differs.
    """
    limits = limits or Limits.of_precision(made.manifest.precision, made.manifest.target)
    large = sum(entry.parameters for entry in made.manifest.components.values()) > SMALL
    if made.manifest.precision == "fp16" and made.manifest.target not in OWN_HALF:
        with Sessions(made, provider("cpu"), low_memory=large) as sessions:  # that it loads and holds, as it is
            for name, (inputs, outputs) in oracle.components.items():
                check_component(sessions, name, inputs, outputs, limits)
    with rounding(made) as rounded:
        return _check(rounded, oracle, step, limits, large)


def _check(made: Package, oracle: Oracle, step: Callable[[str], object], limits: Limits, large: bool) -> Found:
    with Sessions(made, own_provider(made), low_memory=large) as sessions:
        components = {}
        for name, (inputs, outputs) in oracle.components.items():
            step(f"parity: {name}")
            components[name] = check_component(sessions, name, inputs, outputs, limits)
        step("parity: trajectory")
        walked = package_trajectory(sessions, oracle.walk)
    return Found(components, compare(oracle.trajectory, walked, oracle.walk, limits), walked.picture)


@command
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("checkpoint")
@click.option("--weights", help="As for python -m export.")
@click.option("--check", type=click.Choice(["full", "quick"]), default="full")
def main(package: Path, checkpoint: str, weights: str | None, check: str) -> None:
    """Holds PACKAGE against CHECKPOINT (an alias, a hub id, a folder, a file) in torch, and prints what was measured."""
    opened = Package.open(package)
    with TemporaryDirectory() as work, tqdm(desc="parity", unit="step", total=2 * len(opened.manifest.components) + 2) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        oracle = ask(open_checkpoint(checkpoint, weights, Path(work)), opened.manifest.pipeline, check, Path(work), step)
        with on_cpu(opened) as runnable:
            found = check_package(runnable, oracle, step)
    for name, figures in found.components.items():
        click.echo(f"{name}: SNR {figures['snr_db']:.1f} dB, largest difference {figures['max_abs']:.2g}")
    click.echo(f"{found.trajectory['steps']} steps: SNR {min(found.trajectory['snr_db_per_step']):.1f} dB at the worst step, "
               f"pixels within {found.trajectory['picture_max_diff']}/255")


if __name__ == "__main__":
    main()
