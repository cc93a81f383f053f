"""Which providers there are, and what is said where one is not."""

from __future__ import annotations

import re

import onnxruntime as ort
import pytest

from runtime.errors import InputError, Unavailable
from runtime.providers import PROVIDERS, Provider, parse, provider


def test_the_names_are_those_of_the_contract_and_of_onnx_runtime() -> None:
    assert [each.name for each in PROVIDERS] == ["cpu", "cuda", "openvino", "qnn", "webgpu", "nnapi", "coreml", "xnnpack"]
    assert {each.ort_name for each in PROVIDERS} <= set(ort.get_all_providers())


def test_the_cpu_is_always_there() -> None:
    assert provider("cpu").ort_name == "CPUExecutionProvider"
    options = ort.SessionOptions()
    provider("cpu").add_to(options)
    assert options.has_providers()


@pytest.mark.parametrize("which", [each for each in PROVIDERS if each.name != "cpu"], ids=lambda each: each.name)
def test_a_provider_that_is_not_here_says_what_it_needs(which: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with nothing but the CPU build of ONNX Runtime."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(Unavailable) as caught:
        provider(which.name)
    assert str(caught.value) == f"the execution provider '{which.name}' is not available here: it needs {which.needs}"
    assert caught.value.exit_code == 3


def test_what_each_needs_is_named() -> None:
    needs = {each.name: each.needs for each in PROVIDERS}
    assert "onnxruntime-gpu" in needs["cuda"]
    assert "onnxruntime-ep-openvino" in needs["openvino"]
    assert "onnxruntime-qnn" in needs["qnn"]
    assert "onnxruntime-ep-webgpu" in needs["webgpu"]
    assert "python -m android_bench" in needs["nnapi"]


class Plugin:
    """A plugin's Python package, as its documentation describes one."""

    @staticmethod
    def get_library_path() -> str:
        return "/nowhere/libplugin.so"


def test_a_plugin_whose_library_does_not_load_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    monkeypatch.setattr("importlib.import_module", lambda _name: Plugin)
    with pytest.raises(Unavailable, match=r"the library of the execution provider 'webgpu' can't be loaded: .*libplugin.so"):
        provider("webgpu")


def test_a_plugin_without_a_device_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[tuple[str, str]] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    monkeypatch.setattr("importlib.import_module", lambda _name: Plugin)
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *args: registered.append(args))
    with pytest.raises(Unavailable, match="it needs the package onnxruntime-ep-webgpu and a GPU with its driver"):
        provider("webgpu")
    assert registered == [("WebGpuExecutionProvider", "/nowhere/libplugin.so")]


@pytest.mark.parametrize(("name", "advice"), [("openvin", "did you mean openvino?"), ("zzz", "there are cpu, cuda, openvino, qnn")])
def test_an_unknown_name_gets_the_nearest(name: str, advice: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"'{name}' is no execution provider: {advice}")):
        provider(name)


def test_lists_are_parsed() -> None:
    assert [each.name for each in parse(" cpu, cpu")] == ["cpu", "cpu"]
    with pytest.raises(InputError, match="',' names no execution provider: try cpu"):
        parse(",")
