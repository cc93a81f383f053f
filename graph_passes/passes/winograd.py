"""3x3 convolutions -> Winograd convolutions, where a measured time says that it pays and an error and a memory budget allow it

Transformed weights are larger (F(4x4): four times), and rounding counts for more the larger the tile. So each layer gets the fastest
algorithm first; then the layers that lose least time for it step down, until the error and the memory of all of them are within budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graph_passes.costs import Algorithm, Layer, Table
from graph_passes.ops.winograd_conv import TILES, Site, fuse_winograd, refused_convolutions, sites
from graph_passes.step import Outcome, Pass
from graph_passes.values import static_shape
from graph_passes.work import Shapes, Uncounted, output_shapes

DIRECT = Algorithm(0, "fp32")
TYPES = {"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}
# The relative root mean square error of a layer against float64, on standard normal inputs and weights of the U-Net's and the decoder's
# layers; tests/ops/winograd_conv measures it again.
ERRORS: dict[Algorithm, float] = {
    Algorithm(2, "fp32"): 6e-7,
    Algorithm(4, "fp32"): 1.8e-6,
    Algorithm(6, "fp32"): 7e-6,
    Algorithm(2, "bf16"): 4.1e-3,
    Algorithm(4, "bf16"): 1.25e-2,
    Algorithm(2, "fp16"): 1.25e-3,
    Algorithm(4, "fp16"): 3.75e-3,
}
# What the layers of a component may add up to, as a signal-to-noise ratio in dB. Errors of layers are independent of each other, so their
# squares add up, and a network passes on no more than all of them: residual paths go around most layers. 93: half of what the parity gate
# of 90 dB lets through. 27: where the sum was 30, the U-Net of SD 1.4 kept 36 dB and its decoder 39, and their gate is at 30. 37: as
# much below the gate of 40 dB.
LEAST_SNR_DB = {"fp32": 93.0, "bf16": 27.0, "fp16": 37.0}
GAIN = 0.95  # of the direct convolution's time that an algorithm may take at most: closer than this, times are noise


@dataclass(frozen=True)
class Policy:
    """`precision`: the least that operands may have. `memory`: the weights of a component may grow to this times the plain ones.

    `shapes`: the inputs at which the layers' sizes are counted, for a graph whose own are free.
    """

    costs: Table
    precision: str = "fp32"
    memory: float | None = None
    shapes: Shapes = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """A way to compute a layer: its time, the bytes by which its weights exceed the plain ones, and its error, relative, squared."""

    algorithm: Algorithm
    milliseconds: float
    extra_bytes: int
    noise: float


@dataclass(frozen=True)
class Choice:
    """What a layer gets, and which budget kept it from `fastest`, if one did."""

    option: Option
    fastest: Option
    budget: str = ""


def choose(layers: Sequence[Sequence[Option]], noise: float, extra_bytes: float) -> list[Choice]:
    """One option for each layer: the fastest, within what `noise` and `extra_bytes` allow all layers together.

    Each layer's options hold one without noise and extra bytes. Where a budget is exceeded, the step down is taken that loses the least
    time for what it gains, and so on until it holds.
    """
    choices = [Choice(fastest := min(options, key=lambda each: each.milliseconds), fastest) for options in layers]
    for budget, allowed, amount in (
        ("error budget", noise, lambda option: option.noise),
        ("memory budget", extra_bytes, lambda option: option.extra_bytes),
    ):
        while sum(amount(choice.option) for choice in choices) > allowed:
            spare = noise - sum(choice.option.noise for choice in choices)  # what the second budget may give back of the first one's gain
            steps = [
                ((option.milliseconds - choice.option.milliseconds) / (amount(choice.option) - amount(option)), index, option)
                for index, (choice, options) in enumerate(zip(choices, layers, strict=True))
                for option in options
                if amount(option) < amount(choice.option) and option.noise <= choice.option.noise + max(spare, 0)
            ]
            _, index, option = min(steps, key=lambda step: step[:2])
            choices[index] = Choice(option, choices[index].fastest, budget)
    return choices


def winograd(policy: Policy) -> Pass:
    """The pass that applies a policy."""
    return Pass("fuse winograd convolutions", lambda model: _apply(model, policy), refused_convolutions)


def _apply(model: ir.Model, policy: Policy) -> Outcome:
    found = sites(model)
    layers, unknown = _layers(model, found, policy.shapes)
    known = [site for site in found if site in layers]
    options = [_options(site, layers[site], policy) for site in known]
    plain = sum(tensor.nbytes for graph in model.graphs() for tensor in graph.initializers.tensors())
    memory = float("inf") if policy.memory is None else (policy.memory - 1) * plain
    choices = choose(options, 10 ** (-LEAST_SNR_DB[policy.precision] / 10), memory)
    notes = [f"Times are those of {policy.costs.name}: {policy.costs.machine}, {policy.costs.threads} threads"] if known else []
    refused, chosen = list(unknown), {}
    for site, possible, choice in zip(known, options, choices, strict=True):
        sentence = _sentence(site, layers[site], possible, choice)
        if choice.option.algorithm.tile:
            chosen[site.convolution] = (choice.option.algorithm.tile, TYPES[choice.option.algorithm.precision])
            notes.append(sentence)
        else:
            refused.append(sentence)
    return Outcome(fuse_winograd(model, chosen), tuple(notes), tuple(refused))


def _layers(model: ir.Model, found: Sequence[Site], shapes: Shapes) -> tuple[dict[Site, Layer], list[str]]:
    """The size of each site's layer, and a sentence for each whose size is not known."""
    outputs: Mapping[str, tuple[int, ...]] = {}
    why = "the size of its pictures is free, and none was given to count with"
    if shapes and any(static_shape(site.convolution.outputs[0]) is None for site in found):
        try:
            outputs = output_shapes(model, shapes)
            why = "the size of its pictures does not follow from the shapes of the inputs"
        except Uncounted as error:
            why = str(error)
    layers, unknown = {}, []
    for site in found:
        output = site.convolution.outputs[0]
        shape = static_shape(output) or outputs.get(output.name or "")
        if shape is None:
            unknown.append(f"Conv '{site.convolution.name}': {why}")
        else:
            layers[site] = Layer(site.channels_in, site.channels_out, *shape[2:])
    return layers, unknown


def _options(site: Site, layer: Layer, policy: Policy) -> list[Option]:
    """The direct convolution, and what of Winograd's takes less time."""
    direct = policy.costs.milliseconds(DIRECT, layer)
    options = [Option(DIRECT, direct if direct is not None else float("inf"), 0, 0.0)]
    for algorithm, error in ERRORS.items():
        odd = algorithm.precision != "fp32" and site.channels_in % 2  # pairs of channels are multiplied
        milliseconds = policy.costs.milliseconds(algorithm, layer)
        if milliseconds is None or odd or algorithm.precision not in ("fp32", policy.precision):
            continue
        if milliseconds <= GAIN * options[0].milliseconds:
            extra = site.packed_bytes(algorithm.tile, TYPES[algorithm.precision]) - site.weight_bytes()
            options.append(Option(algorithm, milliseconds, max(extra, 0), error**2))
    return options


def _sentence(site: Site, layer: Layer, options: Sequence[Option], choice: Choice) -> str:
    direct, taken = options[0], choice.option
    where = f"Conv '{site.convolution.name}': {layer}: "
    times = f"{taken.milliseconds:.2f} ms, directly {direct.milliseconds:.2f} ms"
    if taken is choice.fastest:
        return where + (f"{taken.algorithm}, {times}" if taken.algorithm.tile else f"no tile is faster than {direct.milliseconds:.2f} ms")
    kept = f"{choice.fastest.algorithm} with {choice.fastest.milliseconds:.2f} ms exceeds the {choice.budget}"
    return where + (f"{taken.algorithm}, {times}; {kept}" if taken.algorithm.tile else f"{kept}; directly {direct.milliseconds:.2f} ms")


def all_with(tile: int, precision: str = "fp32") -> Pass:
    """Every site with one tile, whatever it costs: for measurements."""
    return Pass(
        "fuse winograd convolutions",
        lambda model: fuse_winograd(model, {site.convolution: (tile, TYPES[precision]) for site in sites(model)}),
        refused_convolutions,
    )


assert set(TILES) >= {algorithm.tile for algorithm in ERRORS}
