"""The kernels of WinogradConv, WinogradConvAdd and WinogradConvSilu against float64, for every instruction set they are written for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from graph_passes.costs import Algorithm
from graph_passes.ops.winograd_conv import TILES
from graph_passes.passes.winograd import ERRORS

from ..harness import ISAS, Shape, hold_that_the_library_decides, runs_here, session, without_body, without_shape
from .reference import OPS, SHAPES, TYPES, hold, model_of, operands, oracle


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_is_the_convolution(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, _ = operands("WinogradConv", (1, 2, 3, 3), 2)
    if not runs_here(isa, model_of("WinogradConv", (1, 2, 3, 3), weights, 2), ops_library, monkeypatch):
        return
    for shape, channels_out in SHAPES:
        for precision, dtype in TYPES.items():
            for tile in TILES:
                error = ERRORS.get(Algorithm(tile, precision), 5e-2)
                for op_type in OPS:
                    weights, feeds = operands(op_type, shape, channels_out)
                    kernel = session(model_of(op_type, ("N", shape[1], "H", "W"), weights, tile, dtype), ops_library)
                    hold(kernel.run(None, feeds)[0], op_type, weights, feeds, error)


@pytest.mark.parametrize("precision", TYPES)
def test_a_large_mean_costs_no_more_than_its_size(ops_library: Path, precision: str) -> None:
    for tile in (2, 4):
        weights, feeds = operands("WinogradConv", (1, 64, 20, 20), 16, mean=1e3)
        kernel = session(model_of("WinogradConv", (1, 64, 20, 20), weights, tile, TYPES[precision]), ops_library)
        hold(kernel.run(None, feeds)[0], "WinogradConv", weights, feeds, 2 * ERRORS[Algorithm(tile, precision)])


@pytest.mark.parametrize("algorithm", ERRORS, ids=str)
def test_the_errors_that_layers_are_chosen_by_are_what_is_measured(ops_library: Path, algorithm: Algorithm) -> None:
    for channels_in, channels_out, side in ((320, 64, 32), (1280, 32, 16), (512, 32, 24)):
        weights, feeds = operands("WinogradConv", (1, channels_in, side, side), channels_out)
        feeds["bias"][:] = 0
        expected = oracle("WinogradConv", weights, feeds)
        model = model_of("WinogradConv", feeds["x"].shape, weights, algorithm.tile, TYPES[algorithm.precision])
        got = session(model, ops_library).run(None, feeds)[0]
        error = np.sqrt(np.square(got - expected).mean() / np.square(expected).mean())
        assert 0.75 * ERRORS[algorithm] <= error <= ERRORS[algorithm]


def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, feeds = operands("WinogradConvAdd", (2, 6, 9, 5), 10)
    model = model_of("WinogradConvAdd", ("N", 6, "H", "W"), weights, 4)
    for library in (ops_library, None):
        hold(session(model, library).run(None, feeds)[0], "WinogradConvAdd", weights, feeds, ERRORS[Algorithm(4, "fp32")])
    hold_that_the_library_decides(model, ops_library, monkeypatch)


def test_runs_of_one_session_at_the_same_time_do_not_meet(ops_library: Path) -> None:
    weights, feeds = operands("WinogradConv", (2, 24, 40, 40), 24)
    kernel = session(model_of("WinogradConv", ("N", 24, "H", "W"), weights, 4), ops_library)
    inputs = [{**feeds, "x": feeds["x"] + shift} for shift in range(4)]
    alone = [kernel.run(None, each)[0] for each in inputs]
    with ThreadPoolExecutor(len(inputs)) as pool:
        together = list(pool.map(lambda each: kernel.run(None, each)[0], inputs * 8))
    for index, got in enumerate(together):
        np.testing.assert_array_equal(got, alone[index % len(inputs)])


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"x": (1, 5, 4, 4)}, r"the weights have shape \[2, 36, 6, 8\], and 5 to 9 channels in tiles of 4 take \[2, 36, 5, 8\]"),
        ({"bias": (8,)}, r"the bias has shape \[8\], and must have \[9\]"),
        ({"residual": (1, 9, 1, 1)}, r"the residual has shape \[1, 9, 1, 1\], and must have \[1, 9, 4, 4\]"),
    ],
)  # fmt: skip
def test_the_kernel_refuses_shapes_with_a_sentence(ops_library: Path, shapes: dict[str, tuple[int, ...]], sentence: str) -> None:
    weights, _ = operands("WinogradConvAdd", (1, 6, 4, 4), 9)
    kernel = session(model_of("WinogradConvAdd", ("N", "C", "H", "W"), weights, 4), ops_library)
    good = {"x": (1, 6, 4, 4), "bias": (9,), "residual": (1, 9, 4, 4)}
    with pytest.raises(Exception, match=f"WinogradConvAdd: {sentence}"):
        kernel.run(None, {name: np.ones(size, np.float32) for name, size in {**good, **shapes}.items()})
    kernel.run(None, {name: np.ones(size, np.float32) for name, size in good.items()})  # a refusal leaves the session as it was


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tile": None}, "WinogradConv: the attribute 'tile' is missing or is not an integer"),
        ({"tile": 3}, "WinogradConv: the attribute 'tile' must be 2, 4 or 6, and is 3"),
        ({"channels_out": None}, "WinogradConv: the attribute 'channels_out' is missing or is not an integer"),
        ({"channels_out": 0}, "WinogradConv: the attribute 'channels_out' must be 1 or more, and is 0"),
    ],
)
def test_the_kernel_refuses_attributes_with_a_sentence(ops_library: Path, change: dict[str, int | None], sentence: str) -> None:
    weights, _ = operands("WinogradConv", (1, 6, 4, 4), 9)
    model = model_of("WinogradConv", (1, 6, 4, 4), weights, 4, change=change)
    with pytest.raises(Exception, match=sentence):
        session(without_body(model), ops_library)


@pytest.mark.parametrize(("x", "inferred"), [(("N", 6, 5, "W"), ["N", 9, 5, "W"]), (("N", 6, None, "W"), [])])
def test_the_kernel_says_the_shape_of_its_output(ops_library: Path, x: Shape, inferred: list[int | str]) -> None:
    weights, _ = operands("WinogradConv", (1, 6, 5, 4), 9)
    model = without_shape(without_body(model_of("WinogradConv", x, weights, 2)))
    assert session(model, ops_library).get_outputs()[0].shape == inferred
