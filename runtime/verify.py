"""`python -m runtime.verify`: whether a package is whole, is what its manifest says, runs, and agrees with another one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
from tqdm import tqdm

from runtime import onnx_file, schedulers
from runtime.cli import command
from runtime.compare import decibels, max_abs, snr_db
from runtime.errors import CheckFailed, HandheldError, InputError, Unavailable
from runtime.inputs import PROMPT, example_inputs, size_of
from runtime.manifest import NAME, ComponentEntry, FileEntry, Manifest, Package, files_below, inside, sha256_of
from runtime.pipelines.settings import Settings
from runtime.providers import Provider, provider
from runtime.session import CUSTOM_OPS_DOMAIN, RUNTIME_OPS_DOMAIN, Sessions, own_provider
from runtime.snapdragon import emulated, worth_emulating
from runtime.tokenizer import Tokenizer
from runtime.trial import needs, picture

SEED = 0
SHORT_STEPS = 2  # of the picture that shows that a package runs at all
NUMPY_NAMES = {  # of ONNX Runtime's tensor types
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class Limits:
    """When two packages of one checkpoint agree: SNR of each output in dB; differences of the pictures' pixels, of 255."""

    snr_db: float
    picture_max: float
    picture_mean: float

    @classmethod
    def for_precisions(cls, *precisions: str) -> Limits:
        """Two fp32 packages are each 90 dB from torch; one of lower precision moves edges, but not the picture. What weights of 4 bits
        cost, the export's own check allows."""
        if all(precision == "fp32" for precision in precisions):
            return cls(snr_db=80.0, picture_max=2.0, picture_mean=2.0)
        if "w4" in precisions or "w8" in precisions:
            return cls(snr_db=10.0 if "w4" in precisions else 25.0, picture_max=255.0, picture_mean=16.0)
        return cls(snr_db=30.0, picture_max=255.0, picture_mean=8.0)


def read_manifest(path: Path) -> Manifest:
    """The manifest alone: unlike `Package.open` it lets damaged files pass, so that all of them can be named. Errors: InputError."""
    if not (path / NAME).is_file():
        raise InputError(f"'{path}' has no {NAME}: it is not a package of this project (make one with 'python -m export')")
    return Manifest.from_json((path / NAME).read_text(encoding="utf-8"))


def check_files(path: Path, manifest: Manifest, on_bytes: Callable[[int], object] = lambda _: None) -> None:
    """Size and SHA-256 of every file, and that there are no others. `on_bytes` hears how many bytes were looked at.

    Errors: CheckFailed that names every file that is changed, missing, too much, or a way out of the package.
    """
    wrong = [problem for name, entry in manifest.files.items() if (problem := _file_problem(path, name, entry, on_bytes))]
    wrong += [f"'{name}' is not in the manifest" for name in files_below(path) if name not in manifest.files]
    wrong += [f"'{link.relative_to(path).as_posix()}' is a link out of the package" for link in path.rglob("*") if _leads_out(path, link)]
    for component, entry in manifest.components.items():
        named = set(entry.files)
        wrong += [f"'{name}' of component '{component}' has no hash in the manifest" for name in sorted(named - set(manifest.files))]
        recorded = manifest.files.get(entry.file)
        if recorded is not None and recorded.sha256 != entry.sha256:
            wrong.append(f"'{entry.file}' has two different hashes in the manifest")
    if wrong:
        raise CheckFailed(f"the package '{path}' is not as it was made: {'; '.join(dict.fromkeys(wrong))}. Copy or export it again")


def check_structure(package: Package, component: str, on: Provider | None = None) -> None:
    """That a component's graph is what the manifest says: opset, custom ops, external data, inputs and outputs.

    It is loaded `on` a provider, the package's own where none is given.

    Errors: CheckFailed that names the component and the differences, or says why the graph does not load.
    """
    entry = package.manifest.components[component]
    try:
        found = onnx_file.read(inside(package.path, entry.file))
        # a graph that reads what it should not is not loaded
        problems = list(_external_problems(package, entry, found))
        problems = problems or [*_graph_problems(entry, found), *_port_problems(package, component, on or own_provider(package))]
    except InputError as error:
        raise CheckFailed(str(error)) from error
    if problems:
        raise CheckFailed("; ".join(f"'{component}' {problem}" for problem in problems))


def check_picture(package: Package, on: Provider | None = None) -> tuple[int, int]:
    """Makes a picture in two steps, which refuses NaN and flat ones; returns its size. Errors: CheckFailed, InputError."""
    with Sessions(package, on or own_provider(package)) as sessions:
        height, width = picture(sessions, Settings.one_prompt(PROMPT, SEED, steps=SHORT_STEPS)).images.shape[1:3]
    return height, width


@dataclass(frozen=True)
class Agreement:
    """One comparison: its name, the worst SNR in dB, the largest difference, and whether they are within the limits."""

    name: str
    snr_db: float
    max_abs: float
    good: bool


def compare(first: Package, second: Package, on: Provider | None = None) -> Iterator[Agreement]:
    """The same inputs through the components that both have, then one picture from the same seed through both. The first one runs `on` a
    provider, its own where none is given.

    Errors: InputError where they have no component in common, or one refuses the other's inputs.
    """
    limits = Limits.for_precisions(first.manifest.precision, second.manifest.precision)
    common = [name for name in first.manifest.components if name in second.manifest.components]
    if not common:
        raise InputError(f"'{first.path}' and '{second.path}' have no component in common")
    height, width = size_of(first, None, None)
    mine, other = on or own_provider(first), own_provider(second)
    with Sessions(first, mine, low_memory=True) as ours, Sessions(second, other, low_memory=True) as theirs:
        for component in common:
            inputs = example_inputs(first, component, height, width)
            expected, actual = theirs.run(component, inputs), ours.run(component, inputs)
            names = [name for name in expected if name in actual]
            if not names or any(expected[name].shape != actual[name].shape for name in names):
                raise InputError(f"'{component}' gives other outputs in '{first.path}' than in '{second.path}': are they of one model?")
            snr = min(snr_db(expected[name], actual[name]) for name in names)
            yield Agreement(component, snr, max(max_abs(expected[name], actual[name]) for name in names), snr >= limits.snr_db)
        if all(name in common for name in needs(first.manifest)):
            # the second package's scheduler must not make the difference
            settings = Settings.one_prompt(PROMPT, SEED, scheduler=first.manifest.pipeline["scheduler"], height=height, width=width)
            reference, drawn = picture(theirs, settings).images, picture(ours, settings).images
            difference = np.abs(reference.astype(np.float64) - drawn)
            good = difference.max() <= limits.picture_max and difference.mean() <= limits.picture_mean
            yield Agreement("picture", snr_db(reference, drawn), float(difference.max()), bool(good))


def against_checkpoint(package: Path, checkpoint: Path) -> None:
    """Parity with a diffusers folder, by the export room in a process of its own. Errors: Unavailable without torch, CheckFailed."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers")):
        raise Unavailable("comparing with a checkpoint needs torch and diffusers: pip install 'handheld-diffusion[export]'")
    code = subprocess.run([sys.executable, "-m", "export.parity", str(package), str(checkpoint)], check=False).returncode
    if code:
        error: type[HandheldError] = {2: InputError, 3: Unavailable}.get(code, CheckFailed)
        raise error(f"the parity of '{package}' with the checkpoint '{checkpoint}' did not pass: see above")


def _file_problem(path: Path, name: str, entry: FileEntry, on_bytes: Callable[[int], object]) -> str:
    """What is wrong with one file; empty where nothing is."""
    try:
        file = inside(path, name)
    except InputError as error:
        return str(error)
    if not file.is_file():
        return f"'{name}' is missing"
    size = file.stat().st_size
    if size != entry.bytes:
        return f"'{name}' has {size} bytes and not {entry.bytes}"
    digest = sha256_of(file)
    on_bytes(size)
    return "" if digest == entry.sha256 else f"'{name}' has other bytes than when it was made"


def _leads_out(path: Path, link: Path) -> bool:
    return link.is_symlink() and not link.resolve().is_relative_to(path.resolve())


def _external_problems(package: Package, entry: ComponentEntry, found: onnx_file.OnnxFile) -> Iterator[str]:
    """Where a graph keeps weights: only in the one file that the manifest names for it, and no further than that file goes."""
    folder = Path(entry.file).parent
    for location, size in found.external.items():
        name = (folder / location).as_posix()
        if Path(location).is_absolute() or ".." in Path(location).parts or name != entry.data:
            yield f"keeps weights in '{location}' where the manifest says '{entry.data}': refused"
        elif (actual := inside(package.path, name).stat().st_size) < size:
            yield f"needs {size} bytes of '{name}', which has {actual}"
    if entry.data and not found.external:
        yield f"keeps no weights in '{entry.data}', which the manifest names"


def _graph_problems(entry: ComponentEntry, found: onnx_file.OnnxFile) -> Iterator[str]:
    if found.opsets[""] != entry.opset:
        yield f"has opset {found.opsets['']} where the manifest says {entry.opset}"
    custom = {f"{domain}.{name}": count for (domain, name), count in found.operators.items()
              if domain in (CUSTOM_OPS_DOMAIN, RUNTIME_OPS_DOMAIN)
              and not (entry.context and (domain, name) == onnx_file.CONTEXT)}  # fmt: skip
    recorded = {(name if "." in name else f"{CUSTOM_OPS_DOMAIN}.{name}"): count for name, count in entry.custom_ops.items()}
    if custom != recorded:
        yield f"has the custom ops {custom} where the manifest says {recorded}"


def _port_problems(package: Package, component: str, on: Provider) -> Iterator[str]:
    entry = package.manifest.components[component]
    # what the host computes takes the place of what it reads
    read = {port.name for port in entry.host.inputs} if entry.host else set()
    inputs = (*(port for port in entry.inputs if port.name not in read), *(entry.host.outputs if entry.host else ()))
    with Sessions(package, on) as sessions:
        session = sessions.load(component)
        for kind, ports, nodes in (("input", inputs, session.get_inputs()), ("output", entry.outputs, session.get_outputs())):
            recorded = {port.name: _described(port.dtype, port.shape) for port in ports}
            actual = {node.name: _of_graph(node) for node in nodes}
            for name in dict.fromkeys([*recorded, *actual]):
                if recorded.get(name) != actual.get(name):
                    said, is_ = recorded.get(name, "nothing of it"), actual.get(name, "nothing")
                    yield f"has {is_} as its {kind} '{name}' where the manifest says {said}"


def _of_graph(node: ort.NodeArg) -> str:
    return _described(NUMPY_NAMES.get(node.type, node.type), tuple(node.shape))


def _described(dtype: str, shape: tuple[int | str | None, ...]) -> str:
    """Names of free axes don't matter to anyone who runs a graph, so they are left out."""
    return f"{dtype} [{', '.join(str(axis) if isinstance(axis, int) else '?' for axis in shape)}]"


def _exact(found: Provider) -> Provider:
    """The provider with float32 as float32: CUDA's rounds the operands of products to the 10 bits of TF32, where it may."""
    return replace(found, options={**found.options, "use_tf32": "0"}) if found.name == "cuda" else found


def _tokenizers(path: Path) -> list[str]:
    """Loads every tokenizer of the package and encodes with it; their names. Errors: InputError."""
    names = sorted(folder.name for folder in path.glob("tokenizer*") if folder.is_dir())
    for name in names:
        Tokenizer.from_folder(path / name).encode(PROMPT)
    return names


def _print_parity(manifest: Manifest) -> None:
    for name, entry in manifest.components.items():
        recorded = entry.parity
        figures = f"SNR {decibels(recorded['snr_db'])}, largest difference {recorded['max_abs']:.2g}" if recorded else "not checked"
        click.echo(f"      parity with torch when it was made, {name}: {figures}")
    trajectory = manifest.trajectory_parity
    if trajectory:
        click.echo(
            f"      the whole picture over {trajectory['steps']} steps: differs by {trajectory['picture_max_diff']:g} of 255 at most, "
            f"sensitivity to the prompt {trajectory['prompt_sensitivity']:.4f} of torch's"
        )
    else:
        click.echo("      the whole picture: not checked")


@command
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Another package of the same checkpoint, or the checkpoint's folder.")
@click.option("--ep", metavar="E", help="Run the package on this execution provider.  [default: the one that it is made for]")
def main(package: Path, against: Path | None, ep: str | None) -> None:
    """Checks a package: the hash of every file, the structure of every graph, a short run; and with --against another one."""
    manifest = read_manifest(package)
    total = sum(entry.bytes for entry in manifest.files.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="hashing", leave=False, disable=None) as bar:
        check_files(package, manifest, bar.update)
    click.echo(f"  ok  {len(manifest.files)} files, {total / 1e6:.1f} MB: every hash is right, nothing is missing, nothing is too much")
    opened = Package.open(package)
    on = _exact(provider(ep) if ep else own_provider(opened))
    for name in tqdm(manifest.components, desc="loading", leave=False, disable=None):
        check_structure(opened, name, on)
    click.echo(f"  ok  graphs as the manifest says: {', '.join(manifest.components)}")
    names = _tokenizers(package)
    schedulers.make(manifest.scheduler)
    click.echo(f"  ok  {' and '.join(names) or 'no tokenizer'}, scheduler {manifest.pipeline['scheduler']}")
    if missing := [name for name in needs(manifest) if name not in manifest.components]:
        click.echo(f"      no picture was made: the package has no {' and no '.join(missing)}")
    elif manifest.compiled and emulated() and not all(worth_emulating(manifest.components[name].macs) for name in needs(manifest)):
        click.echo("      no picture was made: the NPU is emulated here, which takes hours for a model of this size")
    else:
        height, width = check_picture(opened, on)
        click.echo(f"  ok  a picture of {width} x {height} in {SHORT_STEPS} steps: finite, and not flat")
    _print_parity(manifest)
    if against is None:
        return
    if (against / NAME).is_file():
        bad = []
        for agreement in compare(opened, Package.open(against), on):
            mark = "  ok" if agreement.good else "FAIL"
            click.echo(f"{mark}  {agreement.name}: SNR {decibels(agreement.snr_db)}, largest difference {agreement.max_abs:.2g}")
            bad += [] if agreement.good else [agreement.name]
        if bad:
            raise CheckFailed(f"'{package}' and '{against}' do not agree in {', '.join(bad)}: see above")
    elif (against / "model_index.json").is_file():
        against_checkpoint(package, against)
    else:
        raise InputError(f"'{against}' is neither a package nor a diffusers folder: it has no {NAME} and no model_index.json")


if __name__ == "__main__":
    main()
