"""What a picture's file tells of how it was made: the text chunks of a PNG."""

from __future__ import annotations

import importlib.metadata

import onnxruntime as ort

from runtime.manifest import NAME, Package, sha256_of
from runtime.pipelines.settings import Result
from runtime.pipelines.size_conditioning import SizeConditioning

# what AUTOMATIC1111's web UI calls our schedulers: tools that read the `parameters` of a PNG know these names
SAMPLERS = {"ddim": "DDIM", "pndm": "PLMS", "euler": "Euler", "euler_ancestral": "Euler a", "dpmpp_2m": "DPM++ 2M", "lcm": "LCM"}


def texts(package: Package, result: Result, index: int, refiner: Package | None, handover: float) -> dict[str, str]:
    """The text chunks of picture `index`: each setting under its name, and all in one line as AUTOMATIC1111's web UI writes them.

    `handover` counts where a `refiner` finished the picture.
    """
    settings = result.settings
    prompt, seed = settings.prompts[index], settings.seeds[index]
    model_hash = sha256_of(package.path / NAME)
    versions = {"handheld-diffusion": importlib.metadata.version("handheld-diffusion"), "onnxruntime": ort.__version__}
    line = {
        "Steps": settings.steps,
        "Sampler": SAMPLERS.get(settings.scheduler, settings.scheduler),
        "CFG scale": f"{settings.guidance:g}",
        "Seed": seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model hash": model_hash[:10],
        "Model": package.manifest.model,
        **({"Denoising strength": f"{settings.strength:g}"} if settings.strength < 1 else {}),
        "Version": f"handheld-diffusion {versions['handheld-diffusion']}",
    }
    chunks = {
        "prompt": prompt,
        "negative_prompt": settings.negative or "",
        "seed": str(seed),
        "steps": str(settings.steps),
        "guidance": f"{settings.guidance:g}",
        "scheduler": settings.scheduler,
        "strength": f"{settings.strength:g}",
        "model": package.manifest.model,
        "precision": package.manifest.precision,
        "package_sha256": model_hash,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        **_sizes(settings.sizes),
    }
    if settings.guidance_rescale:
        line["CFG Rescale"] = chunks["guidance_rescale"] = f"{settings.guidance_rescale:g}"
    if refiner is not None and result.refiner_settings is not None:
        refiner_hash = sha256_of(refiner.path / NAME)
        line |= {"Refiner": f"{refiner.manifest.model} [{refiner_hash[:10]}]", "Refiner switch at": f"{handover:g}"}
        chunks |= {"refiner": refiner.manifest.model, "refiner_sha256": refiner_hash, "handover": f"{handover:g}"}
        chunks |= {f"refiner_{name}": text for name, text in _sizes(result.refiner_settings.sizes).items()}
        chunks["refiner_guidance"] = f"{result.refiner_settings.guidance:g}"
    negative = f"\nNegative prompt: {settings.negative}" if settings.negative else ""
    return {"parameters": f"{prompt}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in line.items()), **chunks}


def _sizes(sizes: SizeConditioning) -> dict[str, str]:
    """What a U-Net was told of sizes, as the options write it."""
    chunks = {}
    for name, value in sizes.given().items():
        if isinstance(value, tuple):
            option = name if name.endswith("crop") else f"{name}_size"
            chunks[option] = ("," if name.endswith("crop") else "x").join(map(str, value))
        else:
            chunks[name] = f"{value:g}"
    return chunks
