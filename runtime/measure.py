"""One measurement in a process of its own (`python -m runtime.measure JOB.json RESULT.json`; `runtime.bench` starts it).

A fresh process per measurement: its peak memory is that of one component, its load is a first load, and no idle threads of
another session spin beside it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import CheckFailed, HandheldError
from runtime.inputs import PROMPT, batch_of, example_inputs
from runtime.machine import peak_rss_mb
from runtime.manifest import Package
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.stable_diffusion import StableDiffusion
from runtime.providers import provider
from runtime.session import Sessions
from runtime.trial import picture

PROMPTS, STEP, PIPELINE = "prompt", "step", "pipeline"  # rows beside those of the components: texts encoded, one step, a whole picture
SEED = 0


@dataclass(frozen=True)
class Job:
    """What to measure: a component's name, PROMPTS, STEP or PIPELINE; `height` and `width` in pixels; `steps` of a picture.

    `warmup` runs are not counted, `repeat` are; with `repeat` 0 the component runs once, for its outputs. `outputs` is the file
    (.npz) that takes them.
    """

    package: str
    ep: str
    component: str
    height: int
    width: int
    steps: int
    repeat: int
    warmup: int
    threads: int
    outputs: str = ""


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """{median_ms, p50_ms, p90_ms, p95_ms, p99_ms, runs} of run times; between two of them linearly, numpy's default (Hyndman & Fan type 7).

    With few runs the high percentiles lean on the slowest one: `runs` stands beside them.
    """
    figures = {f"p{rank}_ms": round(float(np.percentile(seconds, rank)) * 1e3, 4) for rank in (50, 90, 95, 99)}
    return {"median_ms": figures["p50_ms"], **figures, "runs": len(seconds)}


class Counted(Sessions):
    """Sessions that count the rows of each component that they ran."""

    def __init__(self, package: Package, ep: str, threads: int) -> None:
        super().__init__(package, provider(ep), threads)
        self.rows: Counter[str] = Counter()

    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.rows[component] += batch_of(inputs)
        return super().run(component, inputs)


def measure(job: Job) -> dict[str, Any]:
    """Runs a job: {load_ms, the figures of `percentiles`, peak_rss_mb, assigned {provider: nodes}, calls {component: rows}}, and of whole
    pictures also {prompt_ms, step_ms, decoding_ms}, what of them the text encoders, each use of the U-Net and the decoder took.

    `calls` tells how many rows of each component one run needs, for counting work.
    Errors: CheckFailed where the result is not finite or has another shape than the manifest says; those of `Sessions`.
    """
    stages = {PROMPTS: _prompts, STEP: _steps, PIPELINE: _pictures}
    sessions = Counted(Package.open(job.package), job.ep, job.threads)
    with sessions:
        seconds, runs, more = stages.get(job.component, _component)(job, sessions)
        assigned: dict[str, int] = {}
        for component in sessions.loaded:
            for name, nodes in sessions.assigned(component).items():
                assigned[name] = assigned.get(name, 0) + nodes
        timing = percentiles(seconds) if seconds else {}
        load_ms = round(sum(sessions.load_seconds.values()) * 1e3, 2)
        calls = {component: rows // runs for component, rows in sessions.rows.items()}
        return {"load_ms": load_ms, **timing, "peak_rss_mb": round(peak_rss_mb(), 1), "assigned": assigned, "calls": calls, **more}


# What was timed, in seconds; how often the sessions ran for it, warm-up and all; more figures.
Measured = tuple[list[float], int, dict[str, float]]


def _component(job: Job, sessions: Sessions) -> Measured:
    inputs = example_inputs(sessions.package, job.component, job.height, job.width)
    outputs = sessions.run(job.component, inputs)
    _check(sessions.package, job.component, batch_of(inputs), outputs)
    if job.outputs:
        np.savez(job.outputs, **outputs)  # type: ignore[arg-type]  # its second parameter is a flag
    seconds = _timed(lambda: sessions.run(job.component, inputs), job.warmup, job.repeat) if job.repeat else []
    return seconds, 1 + (job.warmup + job.repeat if job.repeat else 0), {}


def _prompts(job: Job, sessions: Sessions) -> Measured:
    """Times the encoding of what a picture is asked for, by the package's own settings: the prompt, and what guidance leads away from."""
    diffusion = StableDiffusion(sessions, _settings(job))
    return _timed(diffusion.encode_prompts, job.warmup, job.repeat), job.warmup + job.repeat, {}


def _steps(job: Job, sessions: Sessions) -> Measured:
    """Times single denoising steps, by the package's own settings: U-Net on all conditions, guidance, scheduler."""
    examples = example_inputs(sessions.package, "unet", job.height, job.width)
    given = {name: array[:1] for name, array in examples.items() if name not in ("sample", "timestep")}
    sessions.load("unet")
    seconds: list[float] = []
    while (missing := job.warmup + job.repeat - len(seconds)) > 0:
        moments: list[float] = []
        diffusion = StableDiffusion(sessions, _settings(job), on_step=lambda *_, moments=moments: moments.append(time.perf_counter()))
        # two different rows, so that guidance has something to do; the text encoders stay out of the memory measured here
        conditioning = {name: np.concatenate([row[:, ::-1], row]) if diffusion.guided else row for name, row in given.items()}
        latents = diffusion.normal(diffusion.latent_shape) * np.float32(diffusion.scheduler.init_noise_sigma)
        moments.append(time.perf_counter())
        diffusion.timesteps = diffusion.timesteps[:missing]
        diffusion.denoise(latents, conditioning)  # checks every step for NaN
        seconds += np.diff(moments).tolist()
    return seconds[job.warmup :], len(seconds), {}


def _pictures(job: Job, sessions: Sessions) -> Measured:
    """Times whole pictures, prompt to pixels, everything loaded, and apart what they are made of. NaN and flat pictures are refused."""
    made: list[Result] = []
    warmup = min(job.warmup, 1)
    seconds = _timed(lambda: made.append(picture(sessions, _settings(job, steps=job.steps))), warmup, job.repeat)
    parts = {
        "prompt_ms": [result.prompt_seconds for result in made[warmup:]],
        "step_ms": [result.step_seconds for result in made[warmup:]],
        "decoding_ms": [result.decoding_seconds for result in made[warmup:]],
    }
    return seconds, warmup + job.repeat, {name: round(float(np.median(values)) * 1e3, 4) for name, values in parts.items()}


def _settings(job: Job, **others: Any) -> Settings:
    return Settings.one_prompt(PROMPT, SEED, height=job.height, width=job.width, **others)


def _timed(run: Callable[[], object], warmup: int, repeat: int) -> list[float]:
    seconds = []
    for _ in range(warmup + repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds[warmup:]


def _check(package: Package, component: str, batch: int, outputs: dict[str, np.ndarray]) -> None:
    for port in package.manifest.components[component].outputs:
        output = outputs[port.name]
        wanted = [batch if axis == "batch_size" else axis for axis in port.shape]
        fits = len(wanted) == output.ndim and all(w == g for w, g in zip(wanted, output.shape, strict=True) if isinstance(w, int))
        if not fits:
            shape = list(output.shape)
            raise CheckFailed(f"'{component}' gives '{port.name}' as {shape} where the manifest says {wanted}: nothing was timed")
        if not np.isfinite(output).all():
            raise CheckFailed(f"'{component}' gives NaN or infinity in '{port.name}': nothing was timed")


def main(job_file: str, result_file: str) -> None:
    """The process's body: an error goes into the result file as {"error", "exit_code"}, for the parent to raise."""
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    try:
        result = measure(job)
    except HandheldError as error:
        result = {"error": str(error), "exit_code": error.exit_code}
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


def write_job(job: Job, file: Path) -> None:
    """The job as the process reads it."""
    file.write_text(json.dumps(asdict(job)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
