"""`manifest.json`: what a package holds, where it came from, what was done to it and how it was checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import InputError

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Port:
    """An input or output of a graph. `shape` holds integers, and names where an axis is dynamic; `dtype` is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class HostEntry:
    """What the CPU computes before an accelerator runs a graph: its inputs are the component's, its outputs the graph's.

    The token embedding with its table, and the sinusoids of the timestep: accelerators have no integers and no lookups.
    """

    file: str
    sha256: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    data: str = ""


@dataclass(frozen=True)
class ContextEntry:
    """How a graph was compiled to a context binary of a Snapdragon's NPU: the component's file then does no more than name the binary.

    `soc` is what it was compiled for, such as sm8550, by `compiler` {onnxruntime-qnn, QNN: versions}, in `seconds` and with `peak_mb`
    of resident memory (10^6 bytes, the mapped weights included). `parity` {snr_db, max_abs} against torch in QNN's emulator of the
    NPU, None where it was not run.
    """

    soc: str
    soc_model: int
    htp_arch: int
    compiler: dict[str, str]
    seconds: float
    peak_mb: float
    bytes: int
    parity: dict[str, float] | None = None


@dataclass(frozen=True)
class SizeEntry:
    """The same component for pictures of another size (in pixels) or another batch: a graph that reads the weights of the first one, or
    where it is compiled (`context`) a binary of its own, `data`."""

    height: int
    width: int
    batch: int
    file: str
    sha256: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    host: HostEntry | None = None
    data: str = ""
    context: ContextEntry | None = None


@dataclass(frozen=True)
class ComponentEntry:
    """A component of a package. Paths are relative to the package; `data` is the external data file, or the context binary of a compiled
    graph, empty where there is none.

    `inputs` are what the component takes. Where there is a `host`, it reads some of them, and the graph its outputs in their place.
    """

    file: str
    sha256: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int
    data: str = ""
    parameters: int = 0
    weight_bytes: int = 0  # of the graph, as they are stored: a quarter of four to a parameter in 8 bits
    casts: int = 0  # nodes that cast one floating-point type to another: a budget where a precision mixes two
    macs: int = 0  # multiply-accumulates of one run at batch 1 and the pipeline's height and width; 0 where they were not counted
    custom_ops: dict[str, int] = field(default_factory=dict)  # ours by name, ONNX Runtime's own as com.microsoft.Name
    passes: tuple[dict[str, Any], ...] = ()  # {name, applied, seconds[, notes: sentences][, refused: sentences]} in order
    parity: dict[str, float] | None = None  # {snr_db, max_abs}
    plan: dict[str, Any] | None = None  # how the target takes the graph: see graph_passes.plan
    host: HostEntry | None = None
    sizes: tuple[SizeEntry, ...] = ()
    context: ContextEntry | None = None

    @property
    def graphs(self) -> tuple[ComponentEntry | SizeEntry, ...]:
        """This graph, and those for other sizes."""
        return self, *self.sizes

    @property
    def files(self) -> tuple[str, ...]:
        """All files that hold graphs or weights of the component."""
        hosts = [graph.host for graph in self.graphs if graph.host is not None]
        named = [name for graph in (*self.graphs, *hosts) for name in (graph.file, graph.data)]
        return tuple(dict.fromkeys(filter(None, named)))


@dataclass(frozen=True)
class FileEntry:
    """A file of the package, hashed."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """See the contract in the README. `pipeline` holds what runs the components together, and the defaults of a picture:

    {family (sd, sdxl, sdxl-refiner), height, width (pixels), batch (0: dynamic), dynamic, vae_scale_factor, scaling_factor, force_upcast
    (whether the decoder overflows in half precision), latent_channels, prediction_type, steps, guidance (0 and 1: off), strength,
    scheduler, force_zeros_for_empty_prompt (whether no negative prompt means zeros), text_encoders, time_ids}.

    `text_encoders` [{component, tokenizer, embeddings, pooled}] stand in the order in which their `embeddings` (an output's name) are
    concatenated; `pooled` names the output that is the U-Net's text_embeds, "" for none. `time_ids` counts the numbers of the U-Net's
    input of that name: 6 (original height and width, crop top and left, target height and width), 5 (the aesthetic score in place of the
    target; its defaults are then aesthetic_score and negative_aesthetic_score), 0 (there is no such input).
    Optional: size_multiple, by which height and width must divide (else vae_scale_factor), and guidance_rescale.
    """

    model: str
    source: dict[str, Any]
    target: str
    precision: str
    tools: dict[str, str]
    pipeline: dict[str, Any]
    components: dict[str, ComponentEntry]
    scheduler: dict[str, Any]
    files: dict[str, FileEntry]
    trajectory_parity: dict[str, Any] | None = None
    format: int = FORMAT

    @property
    def compiled(self) -> bool:
        """Whether graphs of the package are context binaries, which nothing but a Snapdragon's NPU or its emulator runs."""
        return any(entry.context is not None for entry in self.components.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Errors: InputError where a field is missing or the format is another one."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise InputError(f"the package has format {raw['format']}; this version reads format {FORMAT}: export it again")
            components = {name: _component(entry) for name, entry in raw["components"].items()}
            files = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
            return cls(**{**raw, "components": components, "files": files})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{NAME} is not a manifest of this project: {type(error).__name__}: {error}") from error


def _component(raw: dict[str, Any]) -> ComponentEntry:
    sizes = tuple(SizeEntry(**{**size, **_parts(size)}) for size in raw.get("sizes", ()))
    return ComponentEntry(**{**raw, **_parts(raw), "passes": tuple(raw.get("passes", ())), "sizes": sizes})


def _parts(raw: dict[str, Any]) -> dict[str, Any]:
    """What graphs of the first size and of others have in common."""
    context = raw.get("context")
    return {**_ports(raw), "host": _host(raw.get("host")), "context": None if context is None else ContextEntry(**context)}


def _host(raw: dict[str, Any] | None) -> HostEntry | None:
    return None if raw is None else HostEntry(**{**raw, **_ports(raw)})


def _ports(raw: dict[str, Any]) -> dict[str, tuple[Port, ...]]:
    return {key: tuple(Port(p["name"], p["dtype"], tuple(p["shape"])) for p in raw[key]) for key in ("inputs", "outputs")}


@dataclass(frozen=True)
class Package:
    """A folder with a manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Package:
        """Reads the manifest and checks that every file it names stands inside the folder with the size it should have.

        Errors: InputError. The bytes themselves are checked by `runtime.verify`.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"there is no package at '{path}': make one with 'python -m export MODEL {path}'")
        if not (path / NAME).is_file():
            raise InputError(f"'{path}' has no {NAME}: it is not a package of this project (make one with 'python -m export')")
        manifest = Manifest.from_json((path / NAME).read_text(encoding="utf-8"))
        for name, entry in manifest.files.items():
            file = inside(path, name)
            if not file.is_file():
                raise InputError(f"the package '{path}' lacks '{name}': copy or export it again")
            if file.stat().st_size != entry.bytes:
                raise InputError(f"'{name}' has {file.stat().st_size} bytes where the manifest says {entry.bytes}: the package is damaged")
        for name, component in manifest.components.items():
            for file_name in component.files:
                if file_name not in manifest.files:
                    raise InputError(f"the manifest names no hash for '{file_name}' of component '{name}': the package is damaged")
        return cls(path, manifest)

    def file(self, component: str) -> Path:
        """Path of a component's graph. Errors: InputError where the package has no such component."""
        if component not in self.manifest.components:
            known = ", ".join(self.manifest.components)
            raise InputError(f"the package '{self.path}' has no component '{component}': it has {known}")
        return inside(self.path, self.manifest.components[component].file)


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, refused where it would leave the folder (`..`, absolute paths, links). Errors: InputError."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"'{name}' lies outside the package '{folder}': refused")
    return file


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> Iterator[str]:
    """Every file of a package but its manifest, as sorted POSIX paths relative to `folder`."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != NAME:
            yield name
