"""The execution providers of ONNX Runtime that packages run on, under the names that users type.

Most are compiled into a build of ONNX Runtime; three are plugins (a library that is registered at run time and offers devices).
What each needs was tried out; where a provider can't be had on this machine, its sentence says what would be needed.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import onnxruntime as ort

from runtime.errors import InputError, Unavailable
from runtime.snapdragon import DEFAULT, emulated, soc


@dataclass(frozen=True)
class Provider:
    """An execution provider. `plugin` is the Python module of a plugin's package, empty where it is part of ONNX Runtime's build."""

    name: str
    ort_name: str
    needs: str
    options: dict[str, str] = field(default_factory=dict)
    plugin: str = ""
    plugin_options: Callable[[Any], dict[str, str]] | None = None  # the plugin's module -> more options

    @property
    def times_nothing(self) -> bool:
        """Whether it emulates a device here: its results count, its time does not."""
        return self.name == "qnn" and emulated()

    def add_to(self, session: ort.SessionOptions) -> None:
        """Puts the provider into session options, before the CPU's, which takes the nodes that are left."""
        if self.plugin:
            session.add_provider_for_devices(_devices(self)[:1], self.options)
        else:
            session.add_provider(self.ort_name, self.options)

    def on_soc(self, name: str) -> Provider:
        """The provider of a Snapdragon's NPU as this machine's compiler and emulator of it take that SoC. Errors: InputError."""
        return replace(self, options=self.options | _soc_options(name))


def _qnn_options(module: Any) -> dict[str, str]:
    # a phone knows what it is; its emulator is told, and the compiler too
    return {"backend_path": module.get_qnn_htp_path(), "enable_htp_fp16_precision": "1"} | (_soc_options(DEFAULT) if emulated() else {})


def _soc_options(name: str) -> dict[str, str]:
    """What QNN asks for to compile for an SoC, or to emulate its NPU. Errors: InputError for an unknown one."""
    chosen = soc(name)
    return {"soc_model": str(chosen.model), "htp_arch": str(chosen.htp_arch)}


PROVIDERS = (
    Provider("cpu", "CPUExecutionProvider", "ONNX Runtime"),
    Provider("cuda", "CUDAExecutionProvider", "the package onnxruntime-gpu in place of onnxruntime, and an NVIDIA GPU with its driver"),
    Provider(
        "openvino",
        "OpenVINOExecutionProvider",
        "the package onnxruntime-ep-openvino and Intel hardware: a CPU, a GPU or an NPU",
        plugin="onnxruntime_ep_openvino",
    ),
    Provider(
        "qnn",
        "QNNExecutionProvider",
        "the package onnxruntime-qnn (on x86-64 it brings an emulator of the Snapdragon's NPU)",
        plugin="onnxruntime_qnn",
        plugin_options=_qnn_options,
    ),
    Provider(
        "webgpu",
        "WebGpuExecutionProvider",
        "the package onnxruntime-ep-webgpu and a GPU with its driver",
        plugin="onnxruntime_ep_webgpu",
    ),
    Provider("nnapi", "NnapiExecutionProvider", "an Android phone: use 'python -m android_bench'"),
    Provider(
        "coreml",
        "CoreMLExecutionProvider",
        "a Mac (its onnxruntime has CoreML), or an iPhone",
        # the older model format splits a U-Net into dozens of partitions
        options={"ModelFormat": "MLProgram"},
    ),
    Provider("xnnpack", "XnnpackExecutionProvider", "a build of ONNX Runtime with XNNPACK, as those for Android and iOS are"),
)


def provider(name: str) -> Provider:
    """The provider of that name, ready for a session on this machine.

    Errors: InputError for an unknown name, with the nearest ones; Unavailable with what the provider needs.
    """
    found = next((each for each in PROVIDERS if each.name == name), None)
    if found is None:
        known = [each.name for each in PROVIDERS]
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"'{name}' is no execution provider: {advice}")
    if found.plugin:
        return _registered(found)
    if found.ort_name not in ort.get_available_providers():
        raise unavailable(found)
    return found


def parse(names: str) -> tuple[Provider, ...]:
    """Providers from a list like "cpu,openvino". Errors: those of `provider`, and InputError for an empty list."""
    parts = [part.strip() for part in names.split(",") if part.strip()]
    if not parts:
        raise InputError(f"'{names}' names no execution provider: try cpu")
    return tuple(provider(part) for part in parts)


def unavailable(which: Provider) -> Unavailable:
    """The error that says what `which` would need on this machine."""
    return Unavailable(f"the execution provider '{which.name}' is not available here: it needs {which.needs}")


def _devices(which: Provider) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == which.ort_name]


def _registered(which: Provider) -> Provider:
    """`which` with its plugin's library loaded and its options complete."""
    if importlib.util.find_spec(which.plugin) is None:
        raise unavailable(which)
    module = importlib.import_module(which.plugin)
    if not _devices(which):
        try:
            ort.register_execution_provider_library(which.ort_name, module.get_library_path())
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            first = str(error).splitlines()[0]
            raise Unavailable(f"the library of the execution provider '{which.name}' can't be loaded: {first}") from error
    if not _devices(which):
        raise unavailable(which)
    more = which.plugin_options(module) if which.plugin_options else {}
    return replace(which, options=which.options | more)
