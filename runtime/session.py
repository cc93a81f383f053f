"""The graphs of a package as ONNX Runtime sessions: loaded when first needed, freed when asked to."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtime.errors import InputError
from runtime.manifest import ComponentEntry, HostEntry, Package, Port, SizeEntry, inside
from runtime.providers import Provider, provider, unavailable
from runtime.snapdragon import emulated
from runtime.tokenizer import Tokenizer

CUSTOM_OPS_DOMAIN = "handheld"
RUNTIME_OPS_DOMAIN = "com.microsoft"  # ONNX Runtime's own operators, which not every provider has
_LIBRARY_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_BUILT_LIBRARY = Path(__file__).resolve().parent.parent / "build" / "ops" / f"libhandheld_ops{_LIBRARY_SUFFIX}"


def custom_ops_library() -> Path | None:
    """The native kernels of the domain `handheld`: $HANDHELD_OPS_LIBRARY, else what `make kernels` built, else None.

    Without them ONNX Runtime runs the reference bodies that a package carries. Errors: InputError where the variable names no file.
    """
    named = os.environ.get("HANDHELD_OPS_LIBRARY")
    if named is not None:
        if not Path(named).is_file():
            raise InputError(f"HANDHELD_OPS_LIBRARY is '{named}', and there is no such file")
        return Path(named)
    return _BUILT_LIBRARY if _BUILT_LIBRARY.is_file() else None


def own_provider(package: Package) -> Provider:
    """What runs a package without more words: the CPU, the Snapdragon's NPU that it is compiled for, or the GPU whose operators it has.

    Errors: Unavailable.
    """
    return provider("qnn" if package.manifest.compiled else "cuda" if package.manifest.target == "cuda" else "cpu")


class Sessions:
    """The components of one package on one execution provider.

    `threads` are those of one operator (0: as many as there are cores). With `low_memory` at most one component is loaded at a
    time, and its weights stay in the mapped file: slower by what packing them gains (the U-Net of SD 1.4 loads with 0.04 GB of anonymous
    memory in place of 3.5).
    `load_seconds` tells how long each component and tokenizer took to load, the last time it did.
    """

    def __init__(self, package: Package, provider: Provider, threads: int = 0, low_memory: bool = False) -> None:
        if threads < 0:
            raise InputError(f"{threads} threads are not possible: give a positive number, or 0 for one per core")
        self.package = package
        self.provider = provider
        self.threads = threads
        self.low_memory = low_memory
        self.load_seconds: dict[str, float] = {}
        self._loaded: dict[str, dict[str, ort.InferenceSession]] = {}  # by component, by file
        self._tokenizers: dict[str, Tokenizer] = {}

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, component: str) -> bool:
        """Whether the package has a component of that name."""
        return component in self.package.manifest.components

    @property
    def loaded(self) -> tuple[str, ...]:
        """The components that are in memory."""
        return tuple(self._loaded)

    def inputs(self, component: str) -> dict[str, Port]:
        """A component's inputs by name, in order; axes whose size differs between its graphs have a name in place of a number.

        Errors: InputError where the package has no such component.
        """
        self.package.file(component)
        graphs = self.package.manifest.components[component].graphs
        return {port.name: _common(port, graphs) for port in graphs[0].inputs}

    def batch(self, component: str, rows: int) -> int | str:
        """How many rows a component takes at once where there are `rows` of them: a name where it takes any number."""
        graphs = self.package.manifest.components[component].graphs
        sizes = [graph.inputs[0].shape[0] for graph in graphs]
        numbers = [size for size in sizes if isinstance(size, int)]
        return max((size for size in numbers if size <= rows), default=min(numbers)) if len(numbers) == len(sizes) else sizes[0]

    def load(self, component: str, inputs: Mapping[str, np.ndarray] | None = None) -> ort.InferenceSession:
        """The session that runs these inputs, or without them that of the component's first graph, loaded if it isn't.

        Of the graphs for several sizes, one at a time is loaded. Errors: InputError where the graph can't be loaded, Unavailable.
        """
        self.package.file(component)
        graphs = self.package.manifest.components[component].graphs
        graph = graphs[0] if inputs is None else _fitting_graph(graphs, inputs)
        if graph.host is not None:
            self._load(component, graph.host)
        return self._load(component, graph)

    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a component once and returns its outputs by name. Inputs are cast to the dtypes that the graph asks for.

        Errors: InputError where an input is missing, unknown or of a shape that no graph has, and where ONNX Runtime refuses.
        """
        ports = self.inputs(component)
        if missing := [name for name in ports if name not in inputs]:
            raise InputError(f"'{component}' needs the input {_quoted(missing)}, which was not given")
        if unknown := [name for name in inputs if name not in ports]:
            raise InputError(f"'{component}' has no input {_quoted(unknown)}: it takes {_quoted(list(ports))}")
        graph = _fitting_graph(self.package.manifest.components[component].graphs, inputs)
        feeds = {port.name: _fitting(component, port, inputs[port.name]) for port in graph.inputs}
        if graph.host is not None:
            made = _run(component, self._load(component, graph.host), {port.name: feeds.pop(port.name) for port in graph.host.inputs})
            feeds |= made
        return _run(component, self._load(component, graph), feeds)

    def tokenizer(self, folder: str) -> Tokenizer:
        """One of the package's tokenizers, read when it is first needed. Errors: those of `Tokenizer.from_folder`."""
        if folder not in self._tokenizers:
            start = time.perf_counter()
            self._tokenizers[folder] = Tokenizer.from_folder(self.package.path / folder)
            self.load_seconds[folder] = time.perf_counter() - start
        return self._tokenizers[folder]

    def assigned(self, component: str) -> dict[str, int]:
        """How many nodes of a component each execution provider really got, by ONNX Runtime's name of the provider."""
        subgraphs = self.load(component).get_provider_graph_assignment_info()
        counts: Counter[str] = Counter()
        for subgraph in subgraphs:
            counts[subgraph.ep_name] += len(subgraph.get_nodes())
        return dict(counts)

    def free(self, component: str) -> None:
        """Gives a component's memory back; it loads again when it is next needed."""
        self._loaded.pop(component, None)

    def close(self) -> None:
        """Frees every component."""
        self._loaded.clear()

    def _load(self, component: str, graph: ComponentEntry | SizeEntry | HostEntry) -> ort.InferenceSession:
        """The session of one of a component's graphs, on the CPU where it is the host's part."""
        loaded = self._loaded.get(component, {})
        if graph.file not in loaded:
            if self.low_memory and not loaded:
                self.close()
            on_host = isinstance(graph, HostEntry)
            others = {each.file for each in self.package.manifest.components[component].graphs}
            kept = loaded if on_host else {file: session for file, session in loaded.items() if file not in others}
            self._loaded[component] = dict(kept)
            start = time.perf_counter()
            session = self._session(component, graph.file, self._provider_of(component, graph))
            self.load_seconds[component] = (self.load_seconds.get(component, 0.0) if kept else 0.0) + time.perf_counter() - start
            self._loaded[component][graph.file] = session
        return self._loaded[component][graph.file]

    def _provider_of(self, component: str, graph: ComponentEntry | SizeEntry | HostEntry) -> Provider:
        """What runs a graph: the CPU the host's parts, and what of a compiled package is not compiled.

        Errors: InputError where a compiled graph is to run on another provider than the one it was compiled for.
        """
        if isinstance(graph, HostEntry) or (graph.context is None and self.package.manifest.compiled):
            return provider("cpu")
        if graph.context is None:
            return self.provider
        if self.provider.name != "qnn":
            raise InputError(f"'{component}' is compiled for the NPU of a Snapdragon ({graph.context.soc}), and does not run on "
                             f"{self.provider.name}: give --ep qnn")
        return self.provider.on_soc(graph.context.soc) if emulated() else self.provider

    def _session(self, component: str, name: str, provider: Provider) -> ort.InferenceSession:
        file = inside(self.package.path, name)
        library = custom_ops_library()
        try:
            # by path and not as bytes: so external data is mapped and not read
            # bodies recover a layer's weights from their transforms when it runs: folded, those of all layers would be in memory
            without = ["ConstantFolding"] if self._custom_ops(component) and library is None else []
            session = ort.InferenceSession(str(file), self._options(library, provider), enable_fallback=0, disabled_optimizers=without)
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            raise self._refused(component, library, error) from error
        if provider.ort_name not in session.get_providers():  # it only warns when a provider's driver is missing
            raise unavailable(provider)
        return session

    def _options(self, library: Path | None, provider: Provider) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        if self.low_memory:
            # neither repacked for other layouts nor packed for the kernels, weights stay what they are in the mapped file
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False  # activations go back at once, and no block is larger than what is in it
        else:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # what goes wrong reaches the user as an exception, once
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if library is not None:
            options.register_custom_ops_library(str(library))
        provider.add_to(options)
        return options

    def _custom_ops(self, component: str) -> list[str]:
        """Ours in a component: those of ONNX Runtime have a domain before their name."""
        return [name for name in self.package.manifest.components[component].custom_ops if "." not in name]

    def _refused(self, component: str, library: Path | None, error: Exception) -> InputError:
        sentence = f"ONNX Runtime can't load '{component}' on {self.provider.name}: {_first_line(error)}"
        if self.package.manifest.target == "cuda" and self.provider.name != "cuda":
            sentence += ": the package is for cuda, and other providers lack some of its operators: give --ep cuda, or export it for cpu"
        elif (context := self.package.manifest.components[component].context) is not None:
            sentence += f" (it was compiled for {context.soc}: for another Snapdragon, export with that one's --soc)"
        elif self._custom_ops(component) or CUSTOM_OPS_DOMAIN in str(error):
            if library is None:
                sentence += f" (it has custom ops of '{CUSTOM_OPS_DOMAIN}': build their library with 'make kernels')"
            else:
                sentence += f" (with the custom ops of '{library}')"
        return InputError(sentence)


def _run(component: str, session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # ONNX Runtime's errors share no class of their own
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise InputError(f"'{component}' does not run with {shapes}: {_first_line(error)}") from error


def _common(port: Port, graphs: Sequence[ComponentEntry | SizeEntry]) -> Port:
    """The port as all graphs have it: `size_2` in place of an axis 2 that is longer in one than in another."""
    shapes = zip(*(each.shape for graph in graphs for each in graph.inputs if each.name == port.name), strict=True)
    return Port(port.name, port.dtype, tuple(sizes[0] if len(set(sizes)) == 1 else f"size_{axis}" for axis, sizes in enumerate(shapes)))


def _fitting_graph(graphs: Sequence[ComponentEntry | SizeEntry], inputs: Mapping[str, np.ndarray]) -> ComponentEntry | SizeEntry:
    """The graph that takes inputs of these shapes; the first one, which then says what it asks for, where there is none."""
    fits = (graph for graph in graphs if all(_fits(port, np.shape(inputs[port.name])) for port in graph.inputs))
    return next(fits, graphs[0])


def _fits(port: Port, shape: tuple[int, ...]) -> bool:
    return len(port.shape) == len(shape) and all(
        isinstance(wanted, str) or wanted == given for wanted, given in zip(port.shape, shape, strict=True)
    )


def _fitting(component: str, port: Port, value: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(value, dtype=port.dtype) if np.ndim(value) else np.asarray(value, dtype=port.dtype)
    if not _fits(port, array.shape):
        wanted = ", ".join(str(axis) for axis in port.shape)
        raise InputError(f"'{component}' takes '{port.name}' as [{wanted}], not as {list(array.shape)}")
    return array


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _first_line(error: Exception) -> str:
    """ONNX Runtime's first line, without its error code."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(" : ", 3)[-1]
