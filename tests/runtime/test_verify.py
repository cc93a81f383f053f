"""`python -m runtime.verify` finds what is wrong with a package, and names it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from runtime import verify
from runtime.manifest import NAME, Manifest, Package

Changed = Callable[[Callable[[dict[str, Any]], None]], Path]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(verify.main, [str(argument) for argument in arguments])


def test_whole_package_passes_and_its_parity_is_printed(tiny_package: Path) -> None:
    result = run(tiny_package)
    assert result.exit_code == 0, result.output
    manifest = Package.open(tiny_package).manifest
    assert f"{len(manifest.files)} files" in result.output
    assert "a picture of 64 x 64 in 2 steps: finite, and not flat" in result.output
    assert all(f"parity with torch when it was made, {name}: " in result.output for name in manifest.components)


def kinds(package: Path) -> list[str]:
    """One file of every kind."""
    names = [path.relative_to(package).as_posix() for path in sorted(package.rglob("*")) if path.is_file() and path.name != NAME]
    return list({Path(name).suffix + Path(name).name[:5]: name for name in names}.values())


def test_flipped_bit_in_any_kind_of_file_is_found_and_named(package_copy: Path) -> None:
    names = kinds(package_copy)
    assert {Path(name).suffix for name in names} >= {".onnx", ".json", ".txt"}
    for name in names:
        file = package_copy / name
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        result = run(package_copy)
        assert result.exit_code == 1
        assert f"'{name}' has other bytes than when it was made" in result.output
        file.write_bytes(content)


def test_every_wrong_file_is_named_at_once(package_copy: Path) -> None:
    (package_copy / "unet" / "config.json").unlink()
    with (package_copy / "vae_decoder" / "model.onnx").open("ab") as file:
        file.write(b"more")
    size = (package_copy / "vae_decoder" / "model.onnx").stat().st_size
    (package_copy / "unet" / "notes.txt").write_text("mine")
    result = run(package_copy)
    assert result.exit_code == 1
    assert "'unet/config.json' is missing" in result.output
    assert f"'vae_decoder/model.onnx' has {size} bytes and not {size - 4}" in result.output
    assert "'unet/notes.txt' is not in the manifest" in result.output


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname"])
def test_path_that_leaves_the_package_is_refused(package_copy: Path, name: str) -> None:
    (package_copy.parent / "outside.json").write_text("{}")
    manifest = json.loads((package_copy / NAME).read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 2}
    (package_copy / NAME).write_text(json.dumps(manifest))
    result = run(package_copy)
    assert result.exit_code == 1
    assert f"'{name}' lies outside the package" in result.output


def test_link_that_leaves_the_package_is_refused(package_copy: Path) -> None:
    file = package_copy / "unet" / "config.json"
    file.rename(package_copy.parent / "config.json")
    file.symlink_to(package_copy.parent / "config.json")
    (package_copy / "more").symlink_to("/etc")
    result = run(package_copy)
    assert result.exit_code == 1
    assert "'unet/config.json' lies outside the package" in result.output
    assert "'more' is a link out of the package" in result.output


def test_file_of_a_component_without_a_hash_is_found(package_copy: Path) -> None:
    manifest = json.loads((package_copy / NAME).read_text())
    del manifest["files"]["unet/model.onnx"]
    (package_copy / NAME).write_text(json.dumps(manifest))
    result = run(package_copy)
    assert result.exit_code == 1
    assert "'unet/model.onnx' of component 'unet' has no hash in the manifest" in result.output


def with_external_weight(package: Path, changed: Changed, location: str, length: int) -> None:
    """Gives the text encoder of `changed`'s package one weight in an external file; hashes follow."""
    file = package / "text_encoder" / "model.onnx"
    model = onnx.load(file)
    weight = next(w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims) == 2)
    content = numpy_helper.to_array(weight).tobytes()
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        weight.external_data.add(key=key, value=value)
    file.write_bytes(model.SerializeToString())
    (package / "text_encoder" / "model.onnx_data").write_bytes(content[:length])

    def update(manifest: dict[str, Any]) -> None:
        manifest["components"]["text_encoder"]["data"] = "text_encoder/model.onnx_data"
        manifest["files"]["text_encoder/model.onnx_data"] = {}

    changed(update)


def test_external_data_that_is_too_short_is_found_though_every_hash_is_right(package_copy: Path, changed: Changed) -> None:
    with_external_weight(package_copy, changed, "model.onnx_data", length=100)
    result = run(package_copy)
    assert result.exit_code == 1
    assert "'text_encoder' needs " in result.output
    assert "bytes of 'text_encoder/model.onnx_data', which has 100" in result.output


@pytest.mark.parametrize("location", ["../../outside.bin", "/etc/hostname", "other.bin"])
def test_external_data_in_another_file_than_the_manifest_says_is_refused(package_copy: Path, changed: Changed, location: str) -> None:
    with_external_weight(package_copy, changed, location, length=10**9)
    result = run(package_copy)
    assert result.exit_code == 1
    assert f"'text_encoder' keeps weights in '{location}' where the manifest says 'text_encoder/model.onnx_data': refused" in result.output


def test_other_ports_opsets_and_custom_ops_than_the_manifest_says_are_found(changed: Changed) -> None:
    def change(manifest: dict[str, Any]) -> None:
        unet = manifest["components"]["unet"]
        unet["opset"] = 17
        unet["custom_ops"] = {"Geglu": 16}
        unet["inputs"][0]["shape"][1] = 9
        unet["outputs"][0]["name"] = "noise"

    result = run(changed(change))
    assert result.exit_code == 1
    assert "'unet' has opset 20 where the manifest says 17" in result.output
    assert "'unet' has the custom ops {} where the manifest says {'handheld.Geglu': 16}" in result.output
    assert "as its input 'sample' where the manifest says float32 [?, 9, " in result.output
    assert "'unet' has nothing as its output 'noise' where the manifest says float32" in result.output


def test_folder_without_a_manifest_is_a_wrong_call(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 2
    assert f"'{tmp_path}' has no manifest.json: it is not a package of this project" in result.output


def test_package_agrees_with_itself(tiny_package: Path) -> None:
    agreements = list(verify.compare(Package.open(tiny_package), Package.open(tiny_package)))
    assert [agreement.name for agreement in agreements][-1] == "picture"
    assert all(agreement.good and agreement.max_abs == 0 for agreement in agreements)


def test_package_with_one_other_weight_does_not_agree(tiny_package: Path, edit_graph: Callable[..., Path], changed: Changed) -> None:
    """One bias of the decoder moves the picture by a fifth of its range."""

    def edit(model: onnx.ModelProto) -> None:
        bias = next(w for w in model.graph.initializer if w.name.endswith("conv_out.bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.4), bias.name))

    edit_graph("vae_decoder", edit)  # its weights are in the graph now
    result = run(changed(lambda manifest: manifest["components"]["vae_decoder"].update(data="")), "--against", tiny_package)
    assert result.exit_code == 1
    assert "do not agree in vae_decoder, picture: see above" in result.output


def test_against_something_else_is_a_wrong_call(tiny_package: Path, tmp_path: Path) -> None:
    result = run(tiny_package, "--against", tmp_path)
    assert result.exit_code == 2
    assert "is neither a package nor a diffusers folder" in result.output


def test_checkpoint_without_torch_is_not_available(monkeypatch: pytest.MonkeyPatch, tiny_package: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *others: None if name == "torch" else find(name, *others))
    result = run(tiny_package, "--against", tmp_path)
    assert result.exit_code == 3
    assert "comparing with a checkpoint needs torch and diffusers: pip install 'handheld-diffusion[export]'" in result.output


def test_reduced_precision_gets_wider_limits() -> None:
    assert verify.Limits.for_precisions("fp32", "fp32").snr_db == 80
    assert verify.Limits.for_precisions("fp32", "fp16").snr_db == 30


def test_recorded_parity_is_printed_and_its_absence_said(changed: Changed) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for entry in manifest["components"].values():
            entry["parity"] = None
        manifest["components"]["unet"]["parity"] = {"snr_db": 123.4, "max_abs": 0.00025}
        manifest["trajectory_parity"] = {"steps": 20, "picture_max_diff": 1.0, "prompt_sensitivity": 1.0003}

    package = changed(change)
    manifest = Manifest.from_json((package / NAME).read_text())
    assert manifest.components["unet"].parity == {"snr_db": 123.4, "max_abs": 0.00025}
    output = run(package).output
    assert "unet: SNR 123.4 dB, largest difference 0.00025" in output
    assert "vae_decoder: not checked" in output
    assert "over 20 steps: differs by 1 of 255 at most, sensitivity to the prompt 1.0003 of torch's" in output
