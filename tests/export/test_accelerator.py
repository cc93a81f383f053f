"""Exports for phones: whole on the accelerator, equal to torch, in several sizes over one file of weights; refused where they fall apart"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import small_model
from click.testing import CliRunner

from export.__main__ import main
from export.accelerator import fit, require_static, target_of
from export.sizes import further, paired
from runtime.errors import CheckFailed, InputError
from runtime.manifest import Package
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image
from runtime.placement import predicted
from runtime.providers import provider
from runtime.session import Sessions
from runtime.verify import check_files, check_structure

# of every kind of block one: it is traced four times, and the whole of SD's structure stands in tests/graph_passes/test_one_partition.py
TWO_LEVELS = {"block_out_channels": (16, 32), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1,
              "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}


@pytest.fixture(scope="module")
def phone(parts: dict[str, object], once: Callable[[str, Callable[[Path], object]], Path]) -> Package:
    """A small model for nnapi in two sizes, and for one and two pictures at once."""

    modules = {name: part for name, part in parts.items() if name != "safety_checker"} | {"unet": small_model.unet(**TWO_LEVELS)}

    def export(folder: Path) -> None:
        model = small_model.save(folder / "model", modules)
        arguments = [str(model), str(folder / "package"), "--target", "nnapi", "--height", "64,128", "--width", "64", "--batch", "1,2"]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output

    return Package.open(once("package-phone", export) / "package")


def test_every_component_is_one_partition_and_equals_torch(phone: Package) -> None:
    for name, entry in phone.manifest.components.items():
        assert entry.plan is not None, name
        assert (entry.plan["taken"], len(entry.plan["partitions"]), entry.plan["faults"]) == (entry.plan["nodes"], 1, [])
        assert entry.plan["checker"] == {"taken": entry.plan["nodes"], "partitions": 1}
        assert entry.parity is not None
        assert entry.parity["snr_db"] >= 90


def test_the_host_looks_words_up_and_makes_sines(phone: Package) -> None:
    components = phone.manifest.components
    text, unet = components["text_encoder"].host, components["unet"].host
    assert text is not None
    assert unet is not None
    assert [port.name for port in text.inputs] == ["input_ids"]
    assert "token_embedding" in [port.name for port in text.outputs]
    assert [port.name for port in unet.inputs] == ["timestep"]
    assert [port.name for port in components["unet"].inputs] == ["sample", "timestep", "encoder_hidden_states"]
    assert components["vae_decoder"].host is None


def test_sizes_share_one_file_of_weights(phone: Package) -> None:
    entry = phone.manifest.components["unet"]
    assert [(size.height, size.width, size.batch) for size in entry.sizes] == [(64, 64, 2), (128, 64, 1), (128, 64, 2)]
    assert entry.data == "unet/model.onnx_data"
    for size in entry.sizes:
        external = {tensor.const_value.location for tensor in ir.load(phone.path / size.file).graph.initializers.values()
                    if isinstance(tensor.const_value, ir.ExternalTensor)}
        assert external == {"model.onnx_data"}
        assert (phone.path / size.file).stat().st_size < (phone.path / entry.data).stat().st_size
    check_files(phone.path, phone.manifest)
    for name in phone.manifest.components:
        check_structure(phone, name)


@pytest.mark.parametrize(("height", "width", "pictures"), [(64, 64, 1), (128, 64, 1), (128, 64, 3)])
def test_a_picture_of_each_size(phone: Package, height: int, width: int, pictures: int) -> None:
    result = text_to_image(phone, Settings.one_prompt("ab", 0, pictures, height=height, width=width, steps=2))
    assert result.images.shape == (pictures, height, width, 3)


def test_another_size_is_a_sentence(phone: Package) -> None:
    sentence = "this package makes pictures of 64 x 64 and 128 x 64 (height x width), not of 64 x 128: export it with that size too"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        text_to_image(phone, Settings.one_prompt("ab", 0, height=64, width=128, steps=2))


def test_one_graph_of_a_component_is_loaded_at_a_time(phone: Package) -> None:
    with Sessions(phone, provider("cpu")) as sessions:
        for rows in (1, 2, 1):
            inputs = {"latent_sample": np.zeros((rows, 4, 8, 8), np.float32)}
            assert sessions.run("vae_decoder", inputs)["sample"].shape == (rows, 3, 64, 64)
            assert sessions.batch("vae_decoder", rows) == rows
        assert [len(loaded) for loaded in sessions._loaded.values()] == [1]
        assert sessions.batch("vae_decoder", 5) == 2
        assert sessions.inputs("vae_decoder")["latent_sample"].shape == ("size_0", 4, "size_2", 8)


def test_the_plan_is_told_where_there_is_no_phone(phone: Package) -> None:
    told = predicted(phone.manifest, "nnapi")
    assert "Predicted for nnapi from the tables and rules of ONNX Runtime's provider; nothing was measured:" in told
    assert "nodes in 1 partition; the CPU computes" in told
    assert predicted(phone.manifest, "coreml") == (
        "The package is for nnapi, with no plan for coreml: 'python -m export MODEL OUT --target coreml' makes one."
    )


def test_a_graph_that_falls_apart_is_no_export() -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[2,3] x) => (float[2,3] y) { a = Relu(x) b = Round(a) y = Relu(b) }'
    model = ir.from_onnx_text(text)
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].type = model.graph.inputs[0].shape, model.graph.inputs[0].type
    sentence = (
        "'unet' falls into 2 partitions on nnapi, which takes 2 of 3 nodes: above all 1 Round (NNAPI has no Round). "
        "See 'python -m graph_passes.plan', or give --allow-partitions 2"
    )
    with pytest.raises(CheckFailed, match=f"^{re.escape(sentence)}$"):
        fit("unet", model, "nnapi", 1)
    host, plan = fit("unet", model, "nnapi", 2)
    assert host is None
    assert plan is not None
    assert plan["partitions"] == [1, 1]
    assert fit("unet", model, "cpu", 1) == (None, None)


def test_the_safety_checker_stays_on_the_cpu() -> None:
    assert target_of("safety_checker", "nnapi") == "portable"
    assert target_of("unet", "nnapi") == "nnapi"
    assert fit("safety_checker", ir.Model(ir.Graph([], [], nodes=[]), ir_version=9), "nnapi", 1) == (None, None)


def test_free_axes_are_refused() -> None:
    sentence = "the target coreml takes static shapes only: give --height and --width, and leave --dynamic out"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        require_static("coreml", dynamic=True)


def test_heights_and_widths_make_pairs() -> None:
    assert paired([512, 512, 768], [512, 768, 512]) == [(512, 512), (512, 768), (768, 512)]
    assert paired([512], [512, 768]) == [(512, 512), (512, 768)]
    with pytest.raises(InputError, match=r"^2 heights and 3 widths make no pairs: give as many of both, or one of either$"):
        paired([512, 768], [512, 768, 1024])
    assert further({"height": 64, "width": 64, "batch": 1}) == []
