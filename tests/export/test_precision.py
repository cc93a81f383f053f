"""Packages with less than float32: their gates close where a number is wrong, and ranges are those that the values have."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_model
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from export import calibration, sizes
from export.calibration import Measured, value_ranges
from export.component import Component
from export.families import family_of
from export.limits import A16W8, ALLOWANCE_DB, BLOCK_PEAK, CHANNEL_PEAK, FP16, Limits, rounded_weights_db
from export.parity import check_component
from export.reference import Arrays, component_outputs, seeded_inputs
from export.run import Request, export
from export.twin import twin
from export.weights import Checkpoint, open_checkpoint
from graph_passes.passes.quantize_weights import FEWEST
from graph_passes.passes.round_half import ROUND_HALF
from graph_passes.pipelines import for_target
from graph_passes.precision import lowered, stored_bits
from graph_passes.step import run
from runtime import pictures
from runtime.errors import CheckFailed, InputError
from runtime.inputs import example_inputs
from runtime.manifest import Package
from runtime.providers import provider
from runtime.session import Sessions

COMPONENT = "vae_decoder"
# dB of the trained decoder at least, by the estimate that limits are made of: it has two residual blocks and an attention in the middle,
# three blocks at each of four levels
BRANCHES = 15
ESTIMATE = {8: rounded_weights_db(8, CHANNEL_PEAK, BRANCHES) - ALLOWANCE_DB, 4: rounded_weights_db(4, BLOCK_PEAK, BRANCHES) - ALLOWANCE_DB}
GOOD = {"fp16": FP16.component_snr_db, "w8": ESTIMATE[8], "w4": ESTIMATE[4], "a16w8": A16W8.component_snr_db}


def lowered_package(original: Path, folder: Path, precision: str, target: str = "portable") -> Package:
    """A copy of the embedded model's package, with its decoder in another precision, and for the target cpu with its custom ops."""
    copy = faults.copied(original, folder / precision)
    opened = Package.open(copy)
    model = ir.load(copy / COMPONENT / "model.onnx")
    example = example_inputs(opened, COMPONENT, 64, 64)
    if target == "portable":
        run(model, lowered(precision, target, Measured([example])))
    else:
        run(model, for_target(target, precision=precision, at={name: array.shape for name, array in example.items()}))
    proto = ir.to_proto(model)
    faults.edit_graph(copy, COMPONENT, lambda graph: graph.CopyFrom(proto))
    faults.edit_manifest(copy, lambda manifest: manifest.update(precision=precision, target=target))
    return Package.open(copy)


def checked(package: Package, expected: Arrays, inputs: Arrays) -> float:
    limits = Limits.of_precision(package.manifest.precision, package.manifest.target)
    with Sessions(package, provider("cpu")) as sessions:
        return check_component(sessions, COMPONENT, inputs, expected, limits)["snr_db"]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint), None, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def decoder(checkpoint: Checkpoint) -> Component:
    return dict(family_of(checkpoint).components(checkpoint, None, 1))[COMPONENT]()


@pytest.fixture(scope="module")
def decoded(decoder: Component) -> tuple[Arrays, Arrays]:
    """Inputs of the decoder that no range was measured on, and what torch makes of them."""
    inputs = seeded_inputs(decoder, 64, 64, 8)
    return inputs, component_outputs(decoder, inputs)


@pytest.mark.parametrize("precision", GOOD)
def test_a_precision_is_within_its_limits_and_smaller(
    precision: str, tiny_package: Path, tmp_path: Path, decoded: tuple[Arrays, Arrays]
) -> None:
    inputs, expected = decoded
    package = lowered_package(tiny_package, tmp_path, precision)
    if precision == "fp16":
        with twin(package, (ROUND_HALF,)) as rounded:
            assert checked(rounded, expected, inputs) > GOOD[precision]
    assert checked(package, expected, inputs) > GOOD[precision]
    models = [ir.load(path / COMPONENT / "model.onnx") for path in (tiny_package, package.path)]
    assert weight_bytes(models[1]) <= 1.05 * expected_bytes(models[0], precision)  # a twentieth for scales and zero points of activations


def weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def expected_bytes(model: ir.Model, precision: str) -> float:
    """What a float32 graph's weights should take: those of layers what the precision stores, the others as before, or half."""
    layers = {node.inputs[1] for node in model.graph if node.op_type in ("Conv", "MatMul")}
    large = sum(value.const_value.size for value in model.graph.initializers.values()
                if value in layers and value.const_value is not None and value.const_value.size >= FEWEST)
    others = weight_bytes(model) - 4 * large
    return large * stored_bits(precision, "portable") / 8 + (others / 2 if precision == "fp16" else others)


@pytest.mark.parametrize(("precision", "times"), [("w8", 2), ("a16w8", 2), ("w4", 4)])
def test_a_scale_that_is_too_large_closes_the_gate(
    precision: str, times: int, tiny_package: Path, tmp_path: Path, decoded: tuple[Arrays, Arrays]
) -> None:
    inputs, expected = decoded
    package = lowered_package(tiny_package, tmp_path, precision)

    def enlarge(model: onnx.ModelProto) -> None:
        scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("mid_block.resnets.0.conv2.weight.scales"))
        scale.CopyFrom(numpy_helper.from_array(np.float32(times) * numpy_helper.to_array(scale), scale.name))

    faults.edit_graph(package.path, COMPONENT, enlarge)
    with pytest.raises(CheckFailed, match=r"'vae_decoder' differs from torch: its 'sample' has an SNR of .* dB where \d+ are asked for"):
        checked(Package.open(package.path), expected, inputs)


@pytest.mark.parametrize(("precision", "most"), [("bf16", 60), ("fp16", 80)])
def test_products_of_16_bits_are_within_their_limits_and_a_wrong_weight_is_not(
    precision: str, most: float, tiny_package: Path, tmp_path: Path, decoded: tuple[Arrays, Arrays]
) -> None:
    inputs, expected = decoded
    package = lowered_package(tiny_package, tmp_path, precision, target="cpu")
    limit = Limits.of_precision(precision, "cpu").component_snr_db
    assert limit < checked(package, expected, inputs) < most

    def change(factor: float) -> faults.Change:
        def apply(model: onnx.ModelProto) -> None:
            dtype = {"bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}[precision]
            weight = max((each for each in model.graph.initializer if each.data_type == dtype), key=lambda each: math.prod(each.dims))
            changed = ir.from_proto(weight).numpy() * np.array(factor, dtype.numpy())
            weight.CopyFrom(ir.to_proto(ir.tensor(changed, dtype, name=weight.name)))

        return apply

    faults.edit_graph(package.path, COMPONENT, change(1.25))
    with pytest.raises(CheckFailed, match=rf"'vae_decoder' differs from torch: its 'sample' has an SNR of .* dB where {limit:.0f} are"):
        checked(Package.open(package.path), expected, inputs)
    if precision == "fp16":
        faults.edit_graph(package.path, COMPONENT, change(6e4))
        with pytest.raises(CheckFailed, match="'vae_decoder' gives NaN or infinity in 'sample'"):
            checked(Package.open(package.path), expected, inputs)


def test_float16_is_rounded_at_further_sizes_too(
    tiny_package: Path, checkpoint: Checkpoint, decoder: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "further", lambda _: [(64, 64, 1)])
    monkeypatch.setattr(sizes, "components", lambda *_: iter([((64, 64, 1), decoder)]))
    half = lowered_package(tiny_package, tmp_path, "fp16")
    only = replace(half, manifest=replace(half.manifest, components={COMPONENT: half.manifest.components[COMPONENT]}))
    # ONNX Runtime's own float32 in the place of float16 would leave 80 dB and more: rounded weights alone
    assert 45 < sizes.check_sizes(only, checkpoint, limits=FP16, step=str)[COMPONENT]["snr_db"] < 70


def test_ranges_are_those_of_every_value_whatever_the_segments(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.load(tiny_package / "text_encoder" / "model.onnx")
    inputs = [example_inputs(Package.open(tiny_package), "text_encoder", 64, 64)]
    inputs.append({"input_ids": inputs[0]["input_ids"][:, ::-1].copy()})
    whole = value_ranges(model, inputs)
    monkeypatch.setattr(calibration, "SEGMENT_BYTES", 20_000)  # some forty segments
    assert value_ranges(model, inputs) == whole

    proto = ir.to_proto(model)
    names = [output for node in proto.graph.node for output in node.output if output in whole]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    evaluator = ReferenceEvaluator(proto)
    results = [dict(zip(names, evaluator.run(None, each), strict=True)) for each in inputs]
    for name in names:
        arrays = [result[name] for result in results]
        expected = min(array.min() for array in arrays), max(array.max() for array in arrays)
        np.testing.assert_allclose(whole[name], expected, rtol=1e-3, atol=1e-3)


def test_an_export_in_float16_of_a_decoder_that_overflows(parts: dict[str, Any], tmp_path: Path) -> None:
    """From the checkpoint on: trajectories, ranges, conversion while writing, parity on the twin, the manifest. The decoder's residuals
    are beyond float16 from its first layer to its last, as in the second half of SDXL's."""
    loud = small_model.loud(small_model.vae(), 1e6)
    folder = small_model.save(tmp_path / "model", {"text_encoder": parts["text_encoder"], "unet": parts["unet"], "vae": loud})
    made = export(Request(str(folder), tmp_path / "package", precision="fp16", check="full"), lambda _: None)
    for name, entry in made.manifest.components.items():
        share, casts = (0.85, 14) if name == COMPONENT else (0.55, 8)
        assert entry.weight_bytes < share * 4 * entry.parameters, name
        assert entry.casts <= len(entry.inputs) + len(entry.outputs) + casts
        assert entry.parity is None or entry.parity["snr_db"] >= 45.0
        assert {port.dtype for port in (*entry.inputs, *entry.outputs)} <= {"float32", "int64", "bool"}
        notes = [step["notes"][0] for step in entry.passes if step["name"] == "convert to float16"]
        assert len(notes) == 1
        assert "no ranges were measured" not in notes[0]
    converted = next(step for step in made.manifest.components[COMPONENT].passes if step["name"] == "convert to float16")
    assert sum("reaches" in reason for reason in converted["refused"]) > 50
    assert converted["applied"] >= 10  # and yet not all of it is float32
    assert made.manifest.trajectory_parity is not None
    assert made.manifest.trajectory_parity["limits"]["step_snr_db"] == 25.0
    drawn = pictures.read(made.path / "parity" / "onnx.png")
    assert drawn.std() > 1  # what the twin drew, with float16's rounding: not black


def test_a_precision_that_a_target_does_not_have_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The target 'cpu' does not have the precision 'a16w8': it has fp32, bf16, fp16."):
        export(Request("tiny", tmp_path / "package", target="cpu", precision="a16w8"))
