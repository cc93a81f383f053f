"""The door: alias, hub id, folder, single file or random weights -> a Checkpoint whose modules are views of mapped files.

    checkpoint = open_checkpoint("sd14", "random:7", Path("build/work"))
    unet = checkpoint.module("unet")
    checkpoint.provenance()   # waits for the hashes, which are counted in the background

Opening reads headers and configs only, and refuses what does not fit together. Weights are never copied as a whole, neither to memory nor
to a disk: float32 is mapped where it lies; what is stored in another precision, or made up, becomes float32 layer by layer while a module
runs, and tensor by tensor while a graph is written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export import aliases, hub, ldm
from export.aliases import Alias
from export.architecture import OPTIONAL, Architecture, of_alias, of_folder
from export.pickle_file import SUFFIXES
from export.provenance import Hashes
from export.random_weights import Spread, fill_random, spreads
from export.safetensors_file import first_not_finite
from export.skeletons import check, fill, renamed, shapes, skeleton
from export.stored import read, weight_files
from export.streamed import HELD, absent, stream
from export.tokenizer_files import STAND_IN, stand_in_files, tokenizer_files
from runtime.errors import InputError, Unavailable

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A model that is open: what it is made of, where it comes from, and its modules on request.

    `alias` is the model's name (of a folder, file or hub id: its last part). `configs` {component: config.json},
    `scheduler` scheduler_config.json, `options` the plain values of model_index.json. `files` {name in the package: path} go into the
    package as they are.
    `source` {kind: hub|folder|file|random, id, revision[, seed][, tokenizer]} is the provenance without its hashes.
    """

    alias: str
    family: str
    configs: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    options: dict[str, Any]
    files: dict[str, Path]
    source: dict[str, Any]
    shapes: dict[str, dict[str, tuple[int, ...]]]
    stored: dict[str, Callable[[], Tensors]]  # a component's tensors as they are stored, mapped; empty for random weights
    hashes: Hashes
    distributions: dict[str, dict[str, Spread]] = field(default_factory=dict)  # of random weights, by component and tensor
    opened: dict[str, Tensors] = field(default_factory=dict)  # those that `array` reads: a header has thousands of entries
    finite: set[str] = field(default_factory=set)  # the components whose weights have been looked through
    # Of an outline: what stands in the place of each component's weights. Kept, so that nothing else ever gets one of its addresses.
    empty: dict[str, dict[str, torch.Tensor]] | None = None

    def parameters(self, name: str) -> int:
        """Number of weights of a component, from shapes alone."""
        return sum(math.prod(shape) for shape in self.shapes[name].values())

    def outline(self) -> Checkpoint:
        """The same model for tracing: its modules' parameters are memory that nobody has ever touched, and `array` has what belongs there.

        So a graph costs no copy of its weights, whether they have to be made, converted, or only read.
        """
        return replace(self, empty={})

    def array(self, name: str, key: str) -> np.ndarray:
        """One tensor of a component, float32: made, converted, or a view of the mapped file."""
        if self.stored and name not in self.opened:
            self.opened[name] = self.stored[name]()
        made: np.ndarray = self._weight(name, self.opened.get(name), key).numpy()
        return made

    def _weight(self, name: str, stored: Tensors | None, key: str) -> torch.Tensor:
        if stored is not None:
            tensor = stored[key]
            return tensor if _mappable(tensor) else tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        made = torch.empty(self.shapes[name][key])
        fill_random(made.numpy().reshape(-1), self.source["seed"], name, key, self.distributions[name][key])
        return made

    def check_finite(self, name: str) -> None:
        """Reads a component's weights, once. Errors: InputError where one is NaN or infinite."""
        if not self.stored or name in self.finite:
            return
        broken = first_not_finite(self.stored[name]())
        if broken is not None:
            raise InputError(f"the tensor '{name}/{broken}' of '{self.alias}' has NaN or infinite weights: the checkpoint is damaged")
        self.finite.add(name)

    def module(self, name: str) -> torch.nn.Module:
        """A component as a torch module: float32, eval, no gradients.

        Each call gives a module of its own, whose parameters are private: views of the mapped file where that is float32, else small ones
        are tensors, and those of more than HELD elements come when their layer runs and are NaN before and after (see `streamed`).
        Errors: InputError where a weight is NaN or infinite.
        """
        module = skeleton(name, self.configs[name])
        shapes = self.shapes[name]
        if self.empty is not None:
            if name not in self.empty:
                self.empty[name] = {key: torch.empty(shape) for key, shape in shapes.items()}
            return fill(module, self.empty[name])
        self.check_finite(name)
        stored = self.stored[name]() if self.stored else None
        weight = partial(self._weight, name, stored)
        streamed = {key for key, shape in shapes.items() if math.prod(shape) > HELD and not (stored and _mappable(stored[key]))}
        fill(module, {key: absent(shape) if key in streamed else weight(key) for key, shape in shapes.items()})
        return stream(module, streamed, weight)

    def provenance(self) -> dict[str, Any]:
        """`source` with sha256 {file: hexadecimal digits} of every file that was read; waits until they are known."""
        return {**self.source, "sha256": self.hashes.result()}


def open_checkpoint(model: str, weights: str | None, work: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Opens a model.

    `model`: an alias, a hub id ORG/NAME, a diffusers folder, or a single LDM-style file (SD 1.x, 2.x, SDXL).
    `weights`: None (where the model's weights are by themselves), "hub", "random" or "random:SEED", or the PATH of a folder or file whose
    weights must be of the model's architecture. `work`: a folder for what has to be written.
    Errors: InputError for what is wrong with the call or the files, Unavailable for what would need the network.
    """
    named = _named(model)
    if weights is None:
        weights = "hub" if named.repository else str(named.path) if named.path else "random"
    if weights == "hub":
        if not named.repository:
            raise InputError(f"'{model}' is not on the hub: leave --weights out, or give a path or 'random'")
        folder, revision = hub.snapshot(named.repository, (*hub.CONFIGS, *hub.TOKENIZER, *hub.WEIGHTS), "unet/config.json")
        source = {"kind": "hub", "id": named.repository, "revision": revision}
        return _open_folder(named, folder, of_folder(folder, named.name), source, work, allow_pickle)
    if weights == "random" or weights.startswith("random:"):
        return _open_random(named, _seed(weights), work)
    path = Path(weights).expanduser()
    if not path.exists():
        raise InputError(f"there is no folder or file '{weights}': --weights takes 'hub', a path, or 'random[:SEED]'")
    own = named.path is not None and path == named.path
    source = {"kind": "folder" if path.is_dir() else "file", "id": named.name if own else path.resolve().name, "revision": ""}
    if path.is_dir():
        return _open_folder(named, path, _architecture(named), source, work, allow_pickle)
    if path.suffix not in (".safetensors", *SUFFIXES):
        raise InputError(f"'{path}' is no checkpoint: a single file ends with .safetensors")
    return _open_file(named, path, source, work, allow_pickle)


# --- what MODEL names ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    """What MODEL names: `path` is a folder or file; `repository` is on the hub."""

    name: str
    alias: Alias | None = None
    path: Path | None = None
    repository: str = ""


def _named(model: str) -> _Named:
    alias = aliases.find(model)
    if alias is not None:
        return _Named(model, alias, aliases.TINY if model == "tiny" else None, alias.repository)
    path = Path(model).expanduser()
    if path.exists():
        return _Named(path.resolve().name if path.is_dir() else path.stem, path=path)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) and path.suffix not in (".safetensors", *SUFFIXES):
        return _Named(model.split("/")[1], repository=model)
    if "/" in model or path.suffix in (".safetensors", *SUFFIXES):
        raise InputError(f"there is no folder or file '{model}'")
    raise aliases.unknown(model)


def _architecture(named: _Named) -> Architecture:
    """The architecture that MODEL names, which weights from elsewhere must have."""
    if named.alias is not None and named.alias.configs:
        return of_alias(named.name, named.alias.family, named.alias.configs)
    if named.path is not None:
        if not named.path.is_dir():
            raise InputError(f"'{named.path}' is a single file, which gives no architecture to other weights: name an alias or a folder")
        return of_folder(named.path, named.name)
    return of_folder(hub.snapshot(named.repository, (*hub.CONFIGS, *hub.TOKENIZER), "unet/config.json")[0], named.name)


def _seed(weights: str) -> int:
    text = weights.partition(":")[2] or "0"
    if not text.isdecimal():
        raise InputError(f"'{weights}' names no seed: write random or random:SEED, with a whole number that is not negative")
    return int(text)


# --- the three ways in ---------------------------------------------------------------------------------------------------------------


def _open_folder(named: _Named, folder: Path, architecture: Architecture, source: dict[str, Any], work: Path,
                 allow_pickle: bool) -> Checkpoint:
    for part in OPTIONAL:
        if part in architecture.configs and not (folder / part).is_dir():
            architecture = architecture.without(part)
    wanted = _shapes(architecture)
    hashed: dict[str, Path] = {}
    stored: dict[str, Callable[[], Tensors]] = {}
    for part in architecture.configs:
        weights = weight_files(folder / part, part, allow_pickle)
        hashed |= {f"{part}/{file.name}": file for file in weights}
        stored[part] = partial(_of_folder, part, weights, wanted[part], allow_pickle)
        check(part, stored[part](), wanted[part], f"'{folder}'", architecture.name)
    files = _tokenizers(named, architecture, folder, work) | _preprocessor(architecture, folder, work)
    return _checkpoint(architecture, files, source, wanted, stored, hashed)


def _open_file(named: _Named, file: Path, source: dict[str, Any], work: Path, allow_pickle: bool) -> Checkpoint:
    everything = read([file], allow_pickle)
    ldm.require_ldm(everything, file)
    architecture = ldm.architecture(everything, file) if named.path == file else _architecture(named)
    for part in OPTIONAL:  # no single file has a safety checker
        architecture = architecture.without(part)
    wanted = _shapes(architecture)
    stored: dict[str, Callable[[], Tensors]] = {}
    for part, config in architecture.configs.items():
        stored[part] = partial(_of_file, part, file, wanted[part], allow_pickle, config)
        check(part, stored[part](), wanted[part], f"'{file}'", architecture.name)
    if named.path == file:
        base = ldm.alias(everything, file)
        named = _Named(named.name, base, repository=base.repository)
    return _checkpoint(architecture, _tokenizers(named, architecture, file.parent, work), source, wanted, stored, {file.name: file})


def _of_folder(part: str, files: list[Path], wanted: dict[str, tuple[int, ...]], allow_pickle: bool) -> Tensors:
    return renamed(part, read(files, allow_pickle), wanted)


def _of_file(part: str, file: Path, wanted: dict[str, tuple[int, ...]], allow_pickle: bool, config: dict[str, Any]) -> Tensors:
    return renamed(part, ldm.component(part, read([file], allow_pickle), config), wanted)


def _open_random(named: _Named, seed: int, work: Path) -> Checkpoint:
    architecture = _architecture(named)
    source = {"kind": "random", "id": named.name, "revision": "", "seed": seed}
    if named.alias is not None and named.path is None:
        files = _stand_ins(architecture, work)
        source["tokenizer"] = STAND_IN
        folder = None
    else:
        folder = named.path or hub.snapshot(named.repository, (*hub.CONFIGS, *hub.TOKENIZER), "unet/config.json")[0]
        files = _tokenizers(named, architecture, folder, work)
    made = {part: skeleton(part, config) for part, config in architecture.configs.items()}
    opened = _checkpoint(architecture, files | _preprocessor(architecture, folder, work), source,
                         {part: shapes(module) for part, module in made.items()}, {}, {})
    return replace(opened, distributions={part: spreads(module) for part, module in made.items()})


def _checkpoint(architecture: Architecture, files: dict[str, Path], source: dict[str, Any],
                wanted: dict[str, dict[str, tuple[int, ...]]], stored: dict[str, Callable[[], Tensors]],
                hashed: dict[str, Path]) -> Checkpoint:
    hashes = Hashes({**hashed, **files} if hashed else {})  # random weights have no files to name
    return Checkpoint(architecture.name, architecture.family, architecture.configs, architecture.scheduler, architecture.options, files,
                      source, wanted, stored, hashes)


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _shapes(architecture: Architecture) -> dict[str, dict[str, tuple[int, ...]]]:
    return {part: shapes(skeleton(part, config)) for part, config in architecture.configs.items()}


def _mappable(tensor: torch.Tensor) -> bool:
    """Whether a module can use a stored tensor as it is: float32, contiguous, aligned."""
    return tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.data_ptr() % 4 == 0


def _tokenizers(named: _Named, architecture: Architecture, beside: Path, work: Path) -> dict[str, Path]:
    """The tokenizers that stand beside the weights, or that MODEL brings, or that its alias has on the hub."""
    files: dict[str, Path] = {}
    for name in architecture.tokenizers:
        places = (folder / name for folder in (beside, named.path) if folder is not None)
        found = next((place for place in places if place.is_dir()), None)
        if found is None and named.alias is not None and not named.repository:
            return _stand_ins(_architecture(named), work)
        files |= tokenizer_files(found or _tokenizer_of_hub(named, name, beside), work)
    return files


def _stand_ins(architecture: Architecture, work: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for name, pad_token in architecture.pad_tokens.items():
        files |= stand_in_files(aliases.TINY / "tokenizer", work, name, pad_token)
    return files


def _tokenizer_of_hub(named: _Named, name: str, beside: Path) -> Path:
    try:
        if not named.repository:
            raise Unavailable(f"'{named.name}' names no model on the hub")
        return hub.snapshot(named.repository, hub.TOKENIZER, f"{name}/vocab.json")[0] / name
    except Unavailable as error:
        raise Unavailable(
            f"'{beside}' has no folder '{name}', and that of '{named.repository or named.name}' could not be had "
            f"from the hub: put one there (vocab.json, merges.txt), or name a diffusers folder that has one as MODEL") from error


def _preprocessor(architecture: Architecture, folder: Path | None, work: Path) -> dict[str, Path]:
    """The safety checker's preprocessor_config.json, where there is a safety checker."""
    name = "feature_extractor/preprocessor_config.json"
    if "safety_checker" not in architecture.configs:
        return {}
    if folder is not None and (folder / name).is_file():
        return {name: (folder / name).resolve()}
    if architecture.preprocessor is None:
        raise InputError(f"'{folder}' has a safety checker and no {name}: it is no complete diffusers model")
    path = work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(architecture.preprocessor, indent=2) + "\n", encoding="utf-8")
    return {name: path}
