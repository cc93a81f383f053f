"""Packages with less than float32: their gates close where a number is wrong, and ranges are those that the values have."""

from __future__ import annotations

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

from export import calibration
from export.calibration import Measured, value_ranges
from export.families import family_of
from export.parity import Limits, check_component
from export.reference import Arrays, component_outputs, seeded_inputs
from export.run import Request, export
from export.twin import twin
from export.weights import open_checkpoint
from graph_passes.passes.round_half import ROUND_HALF
from graph_passes.precision import lowered
from graph_passes.step import run
from runtime import pictures
from runtime.errors import CheckFailed, InputError
from runtime.inputs import example_inputs
from runtime.manifest import Package
from runtime.providers import provider
from runtime.session import Sessions

COMPONENT = "vae_decoder"
GOOD = {"fp16": 50.0, "w8": 30.0, "w4": 14.0, "a16w8": 33.0}  # dB of the trained decoder at least: above the limits, by what was measured
SMALLER = {"fp16": 1.85, "w8": 2.8, "w4": 3.7, "a16w8": 1.7}  # its layers are small, and so are the blocks of a scale


def lowered_package(original: Path, folder: Path, precision: str) -> Package:
    """A copy of the embedded model's package, with its decoder in another precision."""
    copy = faults.copied(original, folder / precision)
    opened = Package.open(copy)
    model = ir.load(copy / COMPONENT / "model.onnx")
    ranges = Measured([example_inputs(opened, COMPONENT, 64, 64)])
    run(model, lowered(precision, "portable", ranges))
    proto = ir.to_proto(model)
    faults.edit_graph(copy, COMPONENT, lambda graph: graph.CopyFrom(proto))
    faults.edit_manifest(copy, lambda manifest: manifest.update(precision=precision))
    return Package.open(copy)


def checked(package: Package, expected: Arrays, inputs: Arrays) -> float:
    limits = Limits.of_precision(package.manifest.precision)
    with Sessions(package, provider("cpu")) as sessions:
        return check_component(sessions, COMPONENT, inputs, expected, limits)["snr_db"]


@pytest.fixture(scope="module")
def decoded(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Arrays]:
    """Inputs of the decoder that no range was measured on, and what torch makes of them."""
    checkpoint = open_checkpoint(str(tiny_checkpoint), None, tmp_path_factory.mktemp("decoder"))
    component = dict(family_of(checkpoint).components(checkpoint, None, 1))[COMPONENT]()
    inputs = seeded_inputs(component, 64, 64, 8)
    return inputs, component_outputs(component, inputs)


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
    before, after = ((path / COMPONENT / "model.onnx").stat().st_size for path in (tiny_package, package.path))
    assert before / after > SMALLER[precision]


@pytest.mark.parametrize("precision", ["w8", "w4", "a16w8"])
def test_a_scale_that_is_twice_as_large_closes_the_gate(
    precision: str, tiny_package: Path, tmp_path: Path, decoded: tuple[Arrays, Arrays]
) -> None:
    inputs, expected = decoded
    package = lowered_package(tiny_package, tmp_path, precision)

    def double(model: onnx.ModelProto) -> None:
        scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("mid_block.resnets.0.conv2.weight.scales"))
        scale.CopyFrom(numpy_helper.from_array(np.float32(2) * numpy_helper.to_array(scale), scale.name))

    faults.edit_graph(package.path, COMPONENT, double)
    with pytest.raises(CheckFailed, match=r"'vae_decoder' differs from torch: its 'sample' has an SNR of .* dB where \d+ are asked for"):
        checked(Package.open(package.path), expected, inputs)


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
    with pytest.raises(InputError, match=r"The target 'cpu' does not have the precision 'a16w8': it has fp32, bf16."):
        export(Request("tiny", tmp_path / "package", target="cpu", precision="a16w8"))
