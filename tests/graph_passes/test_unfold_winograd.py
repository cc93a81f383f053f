"""3x3 convolutions as a subgraph of standard operators: the same function, within Winograd's error, on whole tiles alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import run_in_double, run_in_runtime

from graph_passes.costs import Algorithm
from graph_passes.errors import GraphError
from graph_passes.ops.winograd_conv import TILES
from graph_passes.passes.winograd import ERRORS
from graph_passes.pipelines import for_target
from graph_passes.rules.unfold_winograd import input_transform, unfold_winograd
from graph_passes.step import Step, run


def network(images: int, channels_in: int, channels_out: int, height: int, width: int, bias: bool = True) -> ir.Model:
    """One convolution with random weights."""
    inputs = f"float[{images}, {channels_in}, {height}, {width}] x"
    text = f"y = Conv<pads: ints = [1, 1, 1, 1]>(x, w{', b' if bias else ''})"
    weights = f"float[{channels_out}, {channels_in}, 3, 3] w" + (f", float[{channels_out}] b" if bias else "")
    output = f"float[{images}, {channels_out}, {height}, {width}] y"
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}, {weights}) => ({output}) {{ {text} }}')
    rng = np.random.default_rng(channels_in)
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.tensor(rng.normal(size=value.shape.numpy()).astype(np.float32), name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    model.graph[0].name = "layer"
    return model


def unfolded(model: ir.Model, tile: int) -> Step:
    (step,) = run(model, (unfold_winograd(tile, least_channels=1),))
    return step


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    ("images", "channels_in", "channels_out", "tiles", "bias"),
    [(1, 1, 1, (1, 1), True), (2, 5, 9, (2, 3), False), (1, 64, 40, (4, 2), True)],
)
def test_it_is_the_convolution(tile: int, images: int, channels_in: int, channels_out: int, tiles: tuple[int, int], bias: bool) -> None:
    model = network(images, channels_in, channels_out, tiles[0] * tile, tiles[1] * tile, bias)
    x = {"x": np.random.default_rng(1).normal(size=model.graph.inputs[0].shape.numpy()).astype(np.float32)}
    (expected,) = run_in_double(ir.from_proto(ir.to_proto(model)), {"x": x["x"].astype(np.float64)})
    step = unfolded(model, tile)
    assert (step.applied, step.refused) == (1, ())
    assert "Conv" not in {node.op_type for node in model.graph}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (got,) = run_in_runtime(model, x)
    # the kernel's error; sums of few channels are small by chance, so it is that of what they could have been
    allowed = 2 * ERRORS[Algorithm(tile, "fp32")] * (9 * channels_in) ** 0.5
    assert np.sqrt(np.square(got - expected).mean()) <= allowed
    (exact,) = run_in_double(model, {"x": x["x"].astype(np.float64)})
    np.testing.assert_allclose(exact, expected, atol=2 * allowed)  # what is rounded there are the weights


def test_the_input_transform_is_that_of_the_paper() -> None:
    """Section 4.1, up to the order and the signs of points: F(2x2) takes differences and sums of pixels."""
    np.testing.assert_array_equal(np.abs(input_transform(2)), [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]])


def test_pictures_that_are_no_whole_tiles_are_left() -> None:
    step = unfolded(network(1, 4, 4, 10, 8), 4)
    assert (step.applied, step.refused) == (0, ("Conv 'layer': 10x8 pixels are no whole tiles of 4x4",))


def test_free_sizes_are_left() -> None:
    model = network(1, 4, 4, 8, 8)
    model.graph.inputs[0].shape = ir.Shape(["N", 4, 8, 8])
    step = unfolded(model, 4)
    assert step.refused == ("Conv 'layer': the size of its pictures is free: fix the shapes first",)


def test_few_channels_are_left() -> None:
    (step,) = run(network(1, 4, 64, 8, 8), (unfold_winograd(4),))
    assert step.refused == ("Conv 'layer': 4 -> 64 channels are too few to pay for the transforms",)


def test_the_pipelines_take_it_where_it_was_asked_for() -> None:
    for target in ("portable", "cpu"):
        model = network(1, 32, 32, 8, 8)
        run(model, for_target(target, winograd_as="subgraph"))
        assert {node.op_type for node in model.graph} & {"Conv", "WinogradConv"} == set()
        model = network(1, 32, 32, 8, 8)
        run(model, for_target(target, winograd_as="none"))
        assert "Conv" in {node.op_type for node in model.graph}


@pytest.mark.parametrize("target", ["nnapi", "coreml"])
def test_hardware_that_convolves_is_left_to_it(target: str) -> None:
    with pytest.raises(
        GraphError, match=f"The target '{target}' convolves in hardware, and Winograd's convolutions would"
    ):
        for_target(target, winograd_as="subgraph")


def test_other_forms_are_refused() -> None:
    with pytest.raises(GraphError, match="Winograd's convolutions cannot be written as 'poem': there is subgraph, and none"):
        for_target("cpu", winograd_as="poem")
