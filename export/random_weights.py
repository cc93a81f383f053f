"""Seeded weights for work without a checkpoint: the exact architecture, sane activations, no picture that means anything.

Every tensor has its own generator, seeded by (seed, component, name): the order in which tensors are made does not matter, and the same
name always gets the same numbers. All are uniform, which is four times as fast to draw as normal.

The standard deviations keep activations near one through any depth (He et al. 2015: gain / sqrt(fan-in)), with residual branches
that add less than what they are added to, biases and norms off their neutral values so that a lost one shows, attention logits wide enough
that it matters which key is looked at, and cross-attention strong enough that the prompt does. In a stack of n transformers each branch
adds 1 / sqrt(n) as much (Radford et al. 2019, section 2.3): else SDXL's stacks of ten make 77 dB of one rounding of their input, 2^-24,
and float32 itself would not pass parity.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch

from export.safetensors_file import BLOCK

# What a layer's name says of its gain: the first end of a name that fits counts.
GAINS = (
    ("attn2.to_out.0", 2.0),  # cross-attention: an average over tokens, small before this layer
    ("conv2", 0.7), ("to_out.0", 0.7), ("ff.net.2", 0.7), ("proj_out", 0.7), ("out_proj", 0.7), ("fc2", 0.7),  # ends of residual branches
    ("time_emb_proj", 2.5),  # so that one timestep is not like another
    ("to_q", 1.5), ("to_k", 1.5), ("q_proj", 1.5), ("k_proj", 1.5),
    ("decoder.conv_out", 0.6),  # pictures with a deviation of a third of -1..1
    ("conv_out", 1.9),  # silu leaves 0.6 of a deviation of one
)
STACK, BRANCH_ENDS = ".transformer_blocks", ("to_out.0", "ff.net.2")


@dataclass(frozen=True)
class Spread:
    """Distribution of one tensor: uniform with this mean and standard deviation."""

    mean: float
    deviation: float


def spreads(module: torch.nn.Module) -> dict[str, Spread]:
    """The distribution of every parameter of a module, by name."""
    found, depth = {}, 1  # of the stack of transformers that a module is in, which comes before what is in it
    for owner_name, owner in module.named_modules():
        if owner_name.endswith(STACK):
            depth = len(list(owner.children()))
        for name, parameter in owner.named_parameters(recurse=False):
            inside = f"{STACK}." in owner_name
            found[f"{owner_name}.{name}".lstrip(".")] = _spread(owner_name, owner, name, parameter, depth if inside else 1)
    return found


def _spread(owner_name: str, owner: torch.nn.Module, name: str, parameter: torch.Tensor, depth: int) -> Spread:
    if isinstance(owner, torch.nn.GroupNorm | torch.nn.LayerNorm):
        return Spread(1.0 if name == "weight" else 0.0, 0.1)
    if isinstance(owner, torch.nn.Embedding):
        return Spread(0.0, 0.3 if owner_name.endswith("position_embedding") else 1.0)
    if isinstance(owner, torch.nn.Linear | torch.nn.Conv2d):
        if name == "bias":
            return Spread(0.0, 0.05)
        gain = next((gain for end, gain in GAINS if owner_name.endswith(end)), 1.0)
        if owner_name.endswith(BRANCH_ENDS):
            gain /= math.sqrt(depth)
        return Spread(0.0, gain / math.sqrt(parameter[0].numel()))
    if name in ("concept_embeds_weights", "special_care_embeds_weights"):
        return Spread(1.1, 0.0)  # a threshold on a cosine that none reaches: nothing is flagged
    return Spread(0.0, 1.0)  # concept_embeds, class_embedding: directions


def fill_random(out: np.ndarray, seed: int, component: str, name: str, spread: Spread) -> None:
    """Puts the elements of one tensor into `out`, float32 [count], in blocks that stay in a core's cache."""
    words = np.frombuffer(hashlib.sha256(f"{component}/{name}".encode()).digest(), dtype="<u4")
    generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *words.tolist()])))
    for start in range(0, out.size, BLOCK):
        block = out[start : start + BLOCK]
        generator.random(dtype=np.float32, out=block)
        block -= np.float32(0.5)
        block *= np.float32(spread.deviation * math.sqrt(12))  # a uniform distribution of width w deviates by w / sqrt(12)
        block += np.float32(spread.mean)
