"""A component's module without weights: built from its config on the meta device, later filled with views of mapped files."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from runtime.errors import InputError

CLASSES: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "safety_checker": StableDiffusionSafetyChecker,
}
# the configs of transformers' models; diffusers' models read the JSON themselves
CONFIG_CLASSES: dict[str, Any] = {"text_encoder": CLIPTextConfig, "text_encoder_2": CLIPTextConfig, "safety_checker": CLIPConfig}

# AutoencoderKL's attention before diffusers 0.17
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def skeleton(component: str, config: dict[str, Any]) -> torch.nn.Module:
    """The module that `config` (a config.json) describes, in eval mode; parameters on the meta device, buffers real.

    Errors: InputError where the config is that of another class or describes nothing that can be built.
    """
    wanted = CLASSES[component]
    named = config.get("_class_name") or next(iter(config.get("architectures") or []), wanted.__name__)
    if named != wanted.__name__:
        raise InputError(f"component '{component}' is a {named}; this version exports {wanted.__name__} there")
    try:
        # not `torch.device("meta")`: buffers that no checkpoint holds (position_ids) must have their values
        with init_empty_weights(include_buffers=False):
            transformers_config = CONFIG_CLASSES.get(component)
            module = wanted(transformers_config.from_dict(config)) if transformers_config else wanted.from_config(config)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        message = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"the config of component '{component}' describes no {wanted.__name__}: {message}") from error
    ready: torch.nn.Module = module.eval().requires_grad_(False)
    return ready


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """{name: shape} of what a checkpoint must hold for the module."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def fill(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Makes `tensors`, not copies of them, the module's parameters."""
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.requires_grad_(False)


def renamed(component: str, stored: dict[str, torch.Tensor], wanted: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The tensors of a published checkpoint under the names of today's module, kernels of 1x1 reshaped to matrices and back.

    transformers 5 took the outer `text_model.` and `vision_model.` away, buffers are no longer saved, and the VAE's attention has
    other names since diffusers 0.17.
    """
    tensors = {}
    for old, tensor in stored.items():
        name = old
        if component == "text_encoder" and name not in wanted:
            name = name.removeprefix("text_model.")
        if component == "safety_checker" and name not in wanted:
            name = name.replace("vision_model.vision_model.", "vision_model.", 1)
        if component == "vae" and name not in wanted and ".attentions." in name:
            head, _, tail = name.rpartition(".attentions.0.")
            part, _, kind = tail.rpartition(".")
            name = f"{head}.attentions.0.{OLD_ATTENTION.get(part, part)}.{kind}"
        if name not in wanted and name.endswith(".position_ids"):
            continue
        if name in wanted and tensor.shape != wanted[name] and _without_ones(tensor.shape) == _without_ones(wanted[name]):
            tensor = tensor.reshape(wanted[name])
        tensors[name] = tensor
    return tensors


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its trailing ones: the same elements in the same order."""
    end = len(shape)
    while end > 1 and shape[end - 1] == 1:
        end -= 1
    return tuple(shape[:end])


def check(component: str, tensors: dict[str, torch.Tensor], wanted: dict[str, tuple[int, ...]], origin: str, architecture: str) -> None:
    """Errors: InputError that names the first tensor which is missing, has another shape, or has no place in the architecture."""
    for name, shape in wanted.items():
        if name not in tensors:
            missing = sum(other not in tensors for other in wanted)
            more = f" and {missing - 1} more" if missing > 1 else ""
            raise InputError(f"{origin} lacks the tensor '{component}/{name}'{more}: it is not of the architecture '{architecture}'")
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"{origin} has the tensor '{component}/{name}' with the shape {list(tensors[name].shape)} where "
                             f"'{architecture}' has {list(shape)}: it is of another architecture")
    for name in tensors:
        if name not in wanted:
            raise InputError(f"{origin} has the tensor '{component}/{name}', which '{architecture}' has not: it is of another architecture")
