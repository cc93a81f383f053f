"""What the U-Net is given beside the latents, the same at every step: prompts as embeddings, sizes, the scale of a distilled guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import CheckFailed, InputError
from runtime.pipelines import batched
from runtime.pipelines.settings import Resolved
from runtime.pipelines.size_conditioning import BASE, REFINER
from runtime.session import Sessions

Conditioning = dict[str, np.ndarray]  # by the U-Net's input: a row per picture; under guidance twice as many, the negatives' first
# of packages that say nothing of their text encoders: Stable Diffusion's one
ONE_ENCODER = ({"component": "text_encoder", "tokenizer": "tokenizer", "embeddings": "last_hidden_state", "pooled": ""},)


@dataclass(frozen=True, eq=False)
class Embedded:
    """Texts as the encoders understand them: `states` float32 [B, tokens, width], all encoders' side by side; `pooled` float32
    [B, projection], None where no encoder gives it."""

    states: np.ndarray
    pooled: np.ndarray | None


def text_encoders(pipeline: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    """The manifest's `text_encoders`."""
    encoders: Sequence[Mapping[str, str]] = pipeline.get("text_encoders", ONE_ENCODER)
    return encoders


def texts(settings: Resolved, guided: bool, pipeline: Mapping[str, Any]) -> list[str | None]:
    """The text of each row; None where zeros stand for the lack of a negative prompt, with which SDXL was trained."""
    zeros = settings.negative is None and pipeline.get("force_zeros_for_empty_prompt", False)
    negative = None if zeros else settings.negative or ""
    return [*([negative] * len(settings.prompts) if guided else []), *settings.prompts]


def embed(sessions: Sessions, wanted: Sequence[str | None], timings: dict[str, list[float]]) -> tuple[Embedded, list[str]]:
    """A row for each of `wanted`, zeros for None, and warnings for the user. Equal texts are encoded once.

    Errors: CheckFailed where an encoder gives NaN or infinity; those of `Sessions`.
    """
    unique = list(dict.fromkeys(text for text in wanted if text is not None))
    states, pooled, warnings = [], None, []
    for encoder in text_encoders(sessions.package.manifest.pipeline):
        component = encoder["component"]
        tokenizer = sessions.tokenizer(encoder["tokenizer"])
        warnings += [warning for text in unique if (warning := tokenizer.warning(text))]
        outputs = batched.run(sessions, component, {"input_ids": tokenizer.encode(unique)}, timings)
        states.append(outputs[encoder["embeddings"]].astype(np.float32))
        check_finite(component, states[-1])
        if encoder["pooled"]:
            pooled = outputs[encoder["pooled"]].astype(np.float32)
            check_finite(component, pooled)
    rows = [None if text is None else unique.index(text) for text in wanted]
    embedded = Embedded(_rows(np.concatenate(states, axis=-1), rows), None if pooled is None else _rows(pooled, rows))
    return embedded, list(dict.fromkeys(warnings))


def condition(sessions: Sessions, settings: Resolved, guided: bool, timings: dict[str, list[float]]) -> tuple[Conditioning, list[str]]:
    """All of the U-Net's inputs but the latents and the timestep, and warnings for the user. Errors: those of `embed`."""
    pipeline = sessions.package.manifest.pipeline
    embedded, warnings = embed(sessions, texts(settings, guided, pipeline), timings)
    inputs = {"encoder_hidden_states": embedded.states}
    if embedded.pooled is not None:
        inputs["text_embeds"] = embedded.pooled
    if pipeline.get("time_ids", 0):
        negative, positive = (np.repeat(row, len(settings.prompts), axis=0) for row in settings.sizes.time_ids())
        inputs["time_ids"] = np.concatenate([negative, positive]) if guided else positive
    if width := guidance_width(sessions):
        inputs["timestep_cond"] = np.repeat(guidance_embedding(settings.guidance - 1, width), len(embedded.states), axis=0)
    return inputs, warnings


def check_time_ids(sessions: Sessions) -> None:
    """Errors: InputError where the U-Net takes another number of time ids than the manifest says, which would condition it on nonsense."""
    count = sessions.package.manifest.pipeline.get("time_ids", 0)
    port = sessions.inputs("unet").get("time_ids")
    taken = port.shape[-1] if port else 0
    if count != taken or count not in (0, REFINER, BASE):
        raise InputError(
            f"the U-Net of '{sessions.package.path}' takes {taken} time ids and its manifest says {count}, where SDXL's base has {BASE} "
            f"and its refiner {REFINER}: the package is damaged, export it again"
        )


def guidance_width(sessions: Sessions) -> int:
    """Length of the guidance embedding that a U-Net distilled with guidance takes (Meng et al. 2023); 0 where it takes none."""
    port = sessions.inputs("unet").get("timestep_cond")
    return int(port.shape[-1]) if port else 0


def guidance_embedding(scale: float, width: int) -> np.ndarray:
    """The sinusoidal embedding of a guidance scale less one (Luo et al. 2023, LCM), float32 [1, width]: sines, then cosines."""
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    angles = np.float32(scale * 1000.0) * frequencies
    embedding = np.concatenate([np.sin(angles), np.cos(angles)])
    return np.pad(embedding, (0, width % 2))[None]


def check_finite(component: str, array: np.ndarray, where: str = "") -> None:
    """Errors: CheckFailed naming the component, and `where` in the run it was."""
    if not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "infinity"
        raise CheckFailed(f"'{component}' gave {bad}{where}: the package is broken, or its precision is too low for this model")


def _rows(array: np.ndarray, rows: Sequence[int | None]) -> np.ndarray:
    """The rows of an array, zeros for None."""
    return np.stack([np.zeros_like(array[0]) if row is None else array[row] for row in rows])
