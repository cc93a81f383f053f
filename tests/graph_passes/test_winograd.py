"""Which convolutions become Winograd's, by which costs and within which budgets."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.costs import FALLBACK, Algorithm, Layer, Row, Table, classes, table
from graph_passes.errors import GraphError
from graph_passes.passes.winograd import DIRECT, ERRORS, LEAST_SNR_DB, Option, Policy, choose, winograd
from graph_passes.pipelines import for_target
from graph_passes.step import Step, run

F2, F4, F6 = (Algorithm(tile, "fp32") for tile in (2, 4, 6))
HALF = Algorithm(4, "bf16")


def costs(*speeds: tuple[Algorithm, float], layer: Layer | None = None) -> Table:
    """A machine on which each algorithm takes so many ms for one layer of 8 -> 8 channels at 8x8."""
    return Table("a machine", "a processor", 2, tuple(Row(algorithm, layer or Layer(8, 8, 8, 8), ms) for algorithm, ms in speeds))


def network(convolutions: int = 2, size: str = "8, 8") -> ir.Model:
    """Convolutions of 8 -> 8 channels, one behind the other."""
    names = ["x", *(f"v{index}" for index in range(1, convolutions)), "y"]
    lines = [f"{names[i + 1]} = Conv<pads: ints = [1, 1, 1, 1]>({names[i]}, w{i})" for i in range(convolutions)]
    weights = ", ".join(f"float[8, 8, 3, 3] w{index}" for index in range(convolutions))
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g (float[1, 8, {size}] x, {weights}) => (float[1, 8, {size}] y) '
                              f"{{ {' '.join(lines)} }}")  # fmt: skip
    for index, (value, node) in enumerate(zip(list(model.graph.inputs)[1:], model.graph, strict=True)):
        value.const_value = ir.tensor(np.zeros((8, 8, 3, 3), np.float32), name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
        node.name = f"layer {index}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        if "H" not in size:
            node.outputs[0].shape = ir.Shape([1, 8, 8, 8])
    return model


def applied(model: ir.Model, policy: Policy) -> Step:
    (step,) = run(model, (winograd(policy),))
    assert sum(node.domain == "handheld" for node in model.graph) == step.applied
    return step


# --- costs ---------------------------------------------------------------------------------------------------------------------------


def test_a_measured_layer_costs_what_was_measured() -> None:
    layer = Layer(320, 640, 32, 32)
    assert costs((F4, 3.5), layer=layer).milliseconds(F4, layer) == 3.5
    assert costs((F4, 3.5)).milliseconds(F2, layer) is None


def test_a_layer_in_between_costs_its_work_at_the_speed_of_its_neighbours() -> None:
    rows = costs((DIRECT, 2.0))
    assert rows.milliseconds(DIRECT, Layer(16, 8, 8, 8)) == pytest.approx(4.0)
    # whole tiles of 4x4 and whole panels of 8 channels are computed
    tiles = costs((F4, 2.0))
    assert tiles.milliseconds(F4, Layer(8, 8, 5, 5)) == pytest.approx(2.0)
    assert tiles.milliseconds(F4, Layer(8, 3, 8, 8)) == pytest.approx(2.0)
    # twice as far counts a quarter
    fast, slow = Layer(16, 16, 16, 16), Layer(16, 16, 128, 128)
    both = Table("m", "p", 2, (Row(DIRECT, fast, 1.0), Row(DIRECT, slow, 64 * 32.0)))
    assert both.milliseconds(DIRECT, Layer(16, 16, 32, 32)) == pytest.approx(4 * 32 ** (1 / 5))


def test_the_tables_of_the_project_know_every_algorithm() -> None:
    assert FALLBACK in classes()
    for name in classes():
        found = table(name)
        for algorithm, side in product((DIRECT, *ERRORS), (8, 64, 512)):
            milliseconds = found.milliseconds(algorithm, Layer(320, 320, side, side))
            assert milliseconds is not None
            assert 0 < milliseconds < 1e5


def test_costs_that_are_not_there_or_broken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"There are no costs of 'abacus': name a class of machines .*x86-64-avx512.* or a file that"):
        table("abacus")
    file = tmp_path / "mine.json"
    for content, sentence in (
        ("{", "mine.json is no table of costs: JSONDecodeError"),
        ('{"format": 1}', "mine.json is no table of costs: KeyError: 'rows'"),
        ('{"format": 2}', "mine.json has format 2; this version reads 1: measure it again."),
    ):
        file.write_text(content)
        with pytest.raises(GraphError, match=sentence):
            table(str(file))


def test_a_file_of_costs_is_read(tmp_path: Path) -> None:
    row = {"tile": 4, "precision": "fp32", "channels_in": 8, "channels_out": 8, "height": 8, "width": 8, "ms": 0.5}
    (tmp_path / "mine.json").write_text(json.dumps({"format": 1, "machine": {"cpu": "abacus"}, "threads": 3, "rows": [row]}))
    assert table(str(tmp_path / "mine.json")) == Table("mine", "abacus", 3, (Row(F4, Layer(8, 8, 8, 8), 0.5),))


# --- the choice ----------------------------------------------------------------------------------------------------------------------


def options(*each: tuple[Algorithm, float, int, float]) -> list[Option]:
    return [Option(*one) for one in each]


PLAIN = (DIRECT, 10.0, 0, 0.0)


def test_without_budgets_the_fastest_is_taken() -> None:
    (choice,) = choose([options(PLAIN, (F2, 6.0, 70, 1.0), (F4, 4.0, 300, 4.0))], float("inf"), float("inf"))
    assert (choice.option.algorithm, choice.budget) == (F4, "")


def test_a_budget_takes_the_bytes_that_save_the_least_time_first() -> None:
    useful, useless = options(PLAIN, (F4, 2.0, 100, 0.0)), options(PLAIN, (F4, 9.0, 100, 0.0))
    first, second = choose([useful, useless], 1.0, 100.0)
    assert (first.option.algorithm, second.option.algorithm, second.budget) == (F4, DIRECT, "memory budget")
    assert second.fastest.algorithm == F4


def test_a_layer_steps_down_before_it_falls_back() -> None:
    layers = [options(PLAIN, (F2, 5.0, 40, 0.0), (F4, 4.0, 100, 0.0))] * 2
    assert [choice.option.algorithm for choice in choose(layers, 1.0, 140.0)] == [F2, F4]
    assert [choice.option.algorithm for choice in choose(layers, 1.0, 80.0)] == [F2, F2]
    assert [choice.option.algorithm for choice in choose(layers, 1.0, 0.0)] == [DIRECT, DIRECT]


def test_memory_is_not_bought_with_errors() -> None:
    """A step down in bytes that would be one up in noise is taken within the first budget, and only there."""
    layers = [options(PLAIN, (F4, 4.0, 100, 1.0), (HALF, 3.0, 30, 50.0))]
    assert [choice.option.algorithm for choice in choose(layers, 10.0, 50.0)] == [DIRECT]
    assert [choice.option.algorithm for choice in choose(layers, 50.0, 50.0)] == [HALF]
    layers = [options(PLAIN, (F4, 2.0, 100, 1.0), (HALF, 3.0, 30, 5.0))]
    assert [choice.option.algorithm for choice in choose(layers, 5.0, 50.0)] == [HALF]


def test_every_choice_keeps_both_budgets_and_none_is_worse_than_the_direct_one() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        ways = [[(each, rng.uniform(1, 10), int(rng.integers(0, 99)), rng.uniform()) for each in (F2, F4, F6)] for _ in range(9)]
        layers = [options(PLAIN, *way) for way in ways]
        noise, memory = rng.uniform(0, 5), rng.uniform(0, 500)
        taken = [choice.option for choice in choose(layers, noise, memory)]
        assert sum(option.noise for option in taken) <= noise
        assert sum(option.extra_bytes for option in taken) <= memory
        assert all(option.milliseconds <= 10.0 for option in taken)


# --- the pass ------------------------------------------------------------------------------------------------------------------------


def test_accepted_and_rejected_layers_are_told_with_their_times() -> None:
    step = applied(network(1), Policy(costs((DIRECT, 4.0), (F2, 3.0), (F4, 2.0))))
    assert step.notes == (
        "Times are those of a machine: a processor, 2 threads",
        "Conv 'layer 0': 8 -> 8 at 8x8: F(4x4) in fp32, 2.00 ms, directly 4.00 ms",
    )
    step = applied(network(1), Policy(costs((DIRECT, 4.0), (F4, 3.9))))  # too close to tell
    assert (step.applied, step.refused) == (0, ("Conv 'layer 0': 8 -> 8 at 8x8: no tile is faster than 4.00 ms",))


def test_a_memory_budget_takes_the_smaller_tile_or_none() -> None:
    machine = costs((DIRECT, 4.0), (F2, 3.0), (F4, 2.0))
    # transformed weights are 16 / 9 and 4 times the plain ones: three layers of F(2x2) are 1.78 times, one F(4x4) among them is 2.5
    applied(model := network(3), Policy(machine, memory=2.6))
    assert sorted(node.attributes["tile"].as_int() for node in model.graph) == [2, 2, 4]
    step = applied(network(2), Policy(machine, memory=1.4))
    fastest = "F(4x4) in fp32 with 2.00 ms exceeds the memory budget"
    assert step.notes[1:] == (f"Conv 'layer 1': 8 -> 8 at 8x8: F(2x2) in fp32, 3.00 ms, directly 4.00 ms; {fastest}",)
    assert step.refused == (f"Conv 'layer 0': 8 -> 8 at 8x8: {fastest}; directly 4.00 ms",)


def test_an_error_budget_keeps_the_sum_of_all_layers() -> None:
    """F(6x6) alone is allowed; in every layer of a network it would be too much."""
    machine = costs((DIRECT, 4.0), (F4, 2.0), (F6, 1.0))
    most = 10 ** (-LEAST_SNR_DB["fp32"] / 10)
    count = int(most / ERRORS[F6] ** 2)
    model = network(count + 5)
    applied(model, Policy(machine))
    tiles = [node.attributes["tile"].as_int() for node in model.graph]
    noise = sum(ERRORS[Algorithm(tile, "fp32")] ** 2 for tile in tiles)
    assert set(tiles) == {4, 6}
    assert most - ERRORS[F6] ** 2 < noise <= most


def test_half_precision_is_taken_only_where_it_was_asked_for() -> None:
    machine = costs((DIRECT, 4.0), (F4, 2.0), (HALF, 1.0))
    """What float16 costs was not measured on this machine: it is weighed as bfloat16."""
    for precision, dtype in (("fp32", ir.DataType.FLOAT), ("bf16", ir.DataType.BFLOAT16), ("fp16", ir.DataType.FLOAT16)):
        model = network(1)
        applied(model, Policy(machine, precision))
        assert model.graph[0].inputs[1].dtype == dtype


def test_free_sizes_are_weighed_as_they_are_told() -> None:
    machine = Table("m", "p", 2, (Row(DIRECT, Layer(8, 8, 8, 8), 4.0), Row(F4, Layer(8, 8, 8, 8), 1.0), Row(F2, Layer(8, 8, 8, 8), 2.0)))
    free = network(1, "H, W")
    step = applied(free, Policy(machine))
    assert step.refused == ("Conv 'layer 0': the size of its pictures is free, and none was given to count with",)
    step = applied(free, Policy(machine, shapes={"x": (1, 8, 2, 2)}))  # one tile of F(2x2), a quarter of one of F(4x4)
    assert step.notes[1:] == ("Conv 'layer 0': 8 -> 8 at 2x2: F(2x2) in fp32, 0.13 ms, directly 0.25 ms",)
    step = applied(network(1, "H, W"), Policy(machine, shapes={"z": (1, 8, 2, 2)}))
    assert step.refused == ("Conv 'layer 0': the graph has no input 'z': it has x",)


def test_the_pipeline_refuses_what_a_target_does_not_have() -> None:
    with pytest.raises(GraphError, match=r"The target 'portable' does not have the precision 'bf16': it has fp32, fp16, w8, w4."):
        for_target("portable", precision="bf16")
    with pytest.raises(GraphError, match=r"The target 'cpu' does not have the precision 'fp8': it has fp32, bf16, fp16."):
        for_target("cpu", precision="fp8")
    with pytest.raises(GraphError, match=r"A memory budget of 0.5 is less than the plain weights: give 1 or more."):
        for_target("cpu", budget=0.5)
