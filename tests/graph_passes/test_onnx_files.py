"""`python -m graph_passes` and the files it reads and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from graph_passes import __main__ as command
from graph_passes import files
from graph_passes.errors import GraphError

ROWS = 600  # of 600 columns in float32: 1.4 MB, so the weights get a file of their own


def write(path: Path, opset: int = 20, columns: int = ROWS) -> Path:
    """x -> MatMul(x, w^T) + b, with the weights in a file beside it."""
    generator = np.random.default_rng(0)
    model = ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["" : {opset}]> g (float[batch,{columns}] x, float[{ROWS},{columns}] w, float[{ROWS}] b) '
        f"=> (float[batch,{ROWS}] y) {{ t = Transpose <perm=[1,0]> (w) m = MatMul(x, t) i = Identity(m) y = Add(i, b) }}"
    )
    for name, shape in (("w", (ROWS, columns)), ("b", (ROWS,))):
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        value.name = f"linear.{name}"
        value.const_value = ir.tensor(generator.normal(size=shape).astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    ir.save(model, path, external_data=f"{path.name}_data", size_threshold_bytes=100)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write(tmp_path / "in" / "model.onnx")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command.main, [str(argument) for argument in arguments])


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(result: Result, sentence: str) -> None:
    assert result.exit_code == 2
    assert result.stderr == f"error: {sentence}\n"


def test_the_command_rewrites_a_model_with_external_weights(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    result = run(source, out / "model.onnx", "--target", "portable", "--json", out / "report.json")
    assert result.exit_code == 0, result.output
    assert listing(out) == ["model.onnx", "model.onnx_data", "report.json"]
    assert "4 nodes before, 2 after" in result.output
    assert any(line.split()[:4] == ["fold", "weights", "1", "0.00"] for line in result.output.splitlines())
    report = json.loads((out / "report.json").read_text())
    assert (report["target"], report["nodes_before"], report["nodes_after"]) == ("portable", 4, 2)
    assert {entry["name"]: entry["applied"] for entry in report["passes"]}["remove identities"] == 1
    assert all(set(entry) == {"name", "applied", "seconds"} for entry in report["passes"])
    proto = onnx.load(out / "model.onnx", load_external_data=False)
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Add"]
    assert {entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"} == {
        "model.onnx_data"
    }
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    written = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(out / "model.onnx").graph.initializer}
    np.testing.assert_array_equal(written["linear.w.transpose"], weights["linear.w"].T)
    np.testing.assert_array_equal(written["linear.b"], weights["linear.b"])


def test_the_body_of_a_custom_op_is_no_node_of_the_graph(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out.onnx", "--target", "cpu")
    assert "4 nodes before, 1 after" in result.output
    proto = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert [node.op_type for node in proto.graph.node] == [function.name for function in proto.functions] == ["Linear"]


def test_small_weights_stay_in_the_graph(tmp_path: Path) -> None:
    source = write(tmp_path / "small.onnx", columns=4)
    assert run(source, tmp_path / "out.onnx").exit_code == 0
    assert listing(tmp_path) == ["out.onnx", "small.onnx", "small.onnx_data"]


def test_the_same_input_gives_the_same_files(source: Path, tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        assert run(source, folder / "model.onnx").exit_code == 0
        contents.append([(folder / name).read_bytes() for name in ("model.onnx", "model.onnx_data")])
    assert contents[0] == contents[1]


def test_static_shapes_on_request(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out.onnx", "--static", f"x=2x{ROWS}").exit_code == 0
    (port,) = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.output
    assert [size.dim_value for size in port.type.tensor_type.shape.dim] == [2, ROWS]


@pytest.mark.parametrize("opset", [13, 17, 18, 21, 23])
def test_opsets_that_are_known(opset: int, tmp_path: Path) -> None:
    write(tmp_path / "in.onnx", opset)
    result = run(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert result.exit_code == 0, result.output
    assert onnx.load(tmp_path / "out.onnx", load_external_data=False).opset_import[0].version == opset


@pytest.mark.parametrize("opset", [12, 24])
def test_opsets_that_are_not(opset: int, tmp_path: Path) -> None:
    path = write(tmp_path / "in.onnx", opset)
    refused(run(path, tmp_path / "out.onnx"), f"{path} has opset {opset}; the passes know 13 to 23. Export it at one of those.")


def test_calls_that_are_wrong(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    refused(run(tmp_path / "no.onnx", out), f"There is no file {tmp_path / 'no.onnx'}.")
    refused(run(source.parent, out), f"{source.parent} is a folder: name the ONNX file in it.")
    refused(run(source, source), f"{source} is both the input and the output: name another output file.")
    refused(
        run(source, source.parent / ".." / "in" / "model.onnx", "--force"),
        f"{source} is both the input and the output: name another output file.",
    )
    refused(run(source, tmp_path / "no" / "out.onnx"), f"There is no folder {tmp_path / 'no'} to write out.onnx into.")
    refused(run(source, tmp_path), f"{tmp_path} is a folder: name the file to write.")
    refused(run(source, out, "--json", tmp_path / "no" / "r.json"), f"There is no folder {tmp_path / 'no'} to write r.json into.")
    refused(
        run(source, out, "--target", "toaster"),
        "There is no pipeline for the target 'toaster'. There is one for portable, cpu, nnapi, coreml, cuda, qnn, webgpu, xnnpack.",
    )
    for text in ("x", "x=", "=2x3", "x=2xthree"):
        refused(run(source, out, "--static", text), f"--static takes an input and its shape, such as sample=2x4x64x64, not {text!r}.")
    refused(run(source, out, "--static", "z=1"), "The graph has no input 'z'. Its inputs are x.")
    assert run(source).exit_code == 2
    assert listing(tmp_path) == ["in"]


def test_an_existing_output_is_replaced_on_request_only(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("mine")
    refused(run(source, out), f"{out} exists. Name another file, or pass --force to replace it.")
    assert out.read_text() == "mine"
    assert run(source, out, "--force").exit_code == 0
    onnx.checker.check_model(out)
    out.unlink()
    data = tmp_path / "out.onnx_data"
    refused(run(source, out), f"{data} exists. Name another file, or pass --force to replace it.")
    small = write(tmp_path / "small.onnx", columns=4)
    assert run(small, out, "--force").exit_code == 0
    assert not data.exists()  # the old model's weights are nobody's


def test_the_weights_of_the_input_are_never_replaced(source: Path) -> None:
    out = source.parent / "out.onnx"
    data = source.parent / "out.onnx_data"
    proto = onnx.load(source, load_external_data=False)
    (source.parent / "model.onnx_data").rename(data)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = data.name
    onnx.save(proto, source)
    before = data.read_bytes()
    refused(run(source, out, "--force"), f"{data} holds the weights of the input: name another output file.")
    assert data.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a"])
def test_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(content)
    refused(run(path, tmp_path / "out.onnx"), f"{path} is not an ONNX file, or only a part of one.")


def test_half_a_model(source: Path, tmp_path: Path) -> None:
    source.write_bytes(source.read_bytes()[:-20])
    refused(run(source, tmp_path / "out.onnx"), f"{source} is not an ONNX file, or only a part of one.")


def test_a_model_that_is_not_valid(source: Path, tmp_path: Path) -> None:
    proto = onnx.load(source, load_external_data=False)
    proto.graph.node[1].op_type = "MatMull"
    onnx.save(proto, source)
    result = run(source, tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {source} is not a valid model: ")
    assert "MatMull" in result.stderr
    assert result.stderr.count("\n") == 1


def relocate(source: Path, location: str, **changes: int) -> None:
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
            if tensor.name == "linear.w" and entry.key in changes:
                entry.value = str(changes[entry.key])
    onnx.save(proto, source)


def test_external_data_that_is_missing_short_or_wrong(source: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out.onnx", source.parent / "model.onnx_data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    refused(
        run(source, out), f"The external data file {data} is truncated: it has {len(whole) - 1} bytes, but 'linear.b' ends at {len(whole)}."
    )
    data.unlink()
    refused(run(source, out), f"The external data file {data} is missing. It belongs beside the model.")
    data.write_bytes(whole)
    relocate(source, "model.onnx_data", length=8)
    refused(run(source, out), f"'linear.w' takes 8 bytes of model.onnx_data, but its shape needs {ROWS * ROWS * 4}.")
    assert listing(tmp_path) == ["in"]


def test_external_data_outside_the_folder_is_not_read(source: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out.onnx", source.parent / "model.onnx_data"
    outside = tmp_path / "secret"
    outside.write_bytes(data.read_bytes())
    for location in ("../secret", str(outside), "../in/model.onnx_data"):
        relocate(source, location)
        result = run(source, out)
        assert result.exit_code == 2
        assert f"is at {location!r}, outside the model's folder, and is not read." in result.stderr
    relocate(source, "link")
    link = source.parent / "link"
    link.symlink_to(outside)
    refused(run(source, out), f"The external data file {link} is a link, and is not read. Copy the file itself there.")
    link.unlink()
    os.link(outside, link)
    refused(run(source, out), f"The external data file {link} has several hard links, and is not read. Copy the file itself there.")
    link.unlink()
    link.symlink_to(data)  # ONNX reads none of those either
    refused(run(source, out), f"The external data file {link} is a link, and is not read. Copy the file itself there.")


def test_a_write_that_fails_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.onnx"

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    refused(run(source, out), f"{out} could not be written: No space left on device.")
    assert listing(tmp_path) == ["in"]


def test_a_disk_that_is_too_small_is_told_before(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
    monkeypatch.setattr(files.ir, "save", lambda *arguments, **options: pytest.fail("it was tried"))
    with pytest.raises(GraphError, match=r"^out.onnx needs 1 MB on disk, and .* has 1 MB left\.$"):
        files.save(files.load(source), tmp_path / "out.onnx")


def test_an_interrupted_write_leaves_the_old_model_whole(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert run(source, out).exit_code == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("out.onnx", "out.onnx_data")}

    def stop(size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.save(files.load(source), out, stop)
    assert {name: (tmp_path / name).read_bytes() for name in ("out.onnx", "out.onnx_data")} == before
    assert listing(tmp_path) == ["in", "out.onnx", "out.onnx_data"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run(tmp_path / "no.onnx", tmp_path / "out.onnx", "--debug")
    assert isinstance(result.exception, GraphError)


def test_it_runs_as_a_module_and_without_torch(source: Path, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_module('graph_passes', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", blocked, str(source), str(tmp_path / "out.onnx")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert done.stdout.startswith("pass ")
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
