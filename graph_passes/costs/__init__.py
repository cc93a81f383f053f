"""What a 3x3 convolution costs on a class of machines: times that `python -m runtime.bench --calibrate` measured, one table per class.

A machine without a table of its own class takes the one of FALLBACK: what is weighed is how algorithms compare on one machine, and that
varies less from machine to machine than their times do. So does arm64, whose kernels only ever ran in an emulator, where time says nothing:
like those of AVX2 they have vectors of no more than 8 lanes. Products of bfloat16 numbers, which some of its CPUs have and AVX2 not, are
worth more there than that table knows. `runtime.bench --calibrate --json FILE` on the device and `export --costs FILE` weigh by its own
times; a file arm64-neon.json in this folder makes it a class. The manifest tells whose times were taken.
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path

from graph_passes.errors import GraphError

FOLDER = Path(__file__).parent
FALLBACK = "x86-64-avx2"
FORMAT = 1
NEAREST = 4  # rows that an estimate is made of


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution of stride 1 that makes `height` x `width` pixels of one picture."""

    channels_in: int
    channels_out: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.channels_in} -> {self.channels_out} at {self.height}x{self.width}"


@dataclass(frozen=True)
class Algorithm:
    """How a convolution is computed: `tile` m of Winograd's F(m x m, 3 x 3), 0 for the runtime's own; `precision` of its operands."""

    tile: int
    precision: str

    def __str__(self) -> str:
        return f"F({self.tile}x{self.tile}) in {self.precision}" if self.tile else "the direct convolution"


@dataclass(frozen=True)
class Row:
    """One measured time."""

    algorithm: Algorithm
    layer: Layer
    milliseconds: float


@dataclass(frozen=True)
class Table:
    """The rows of one class of machines. `threads`: with how many they were measured."""

    name: str
    machine: str
    threads: int
    rows: tuple[Row, ...]

    def milliseconds(self, algorithm: Algorithm, layer: Layer) -> float | None:
        """The measured time; where the layer was not measured, its work at the speed of the nearest that were; None where none was. Where
        float16 was not measured, that of bfloat16.

        Speeds, and distances between layers, are taken in logarithms; nearer rows weigh more, by the square of the distance.
        """
        distances = [(_distance(row.layer, layer), row) for row in self.rows if row.algorithm == algorithm]
        if not distances and algorithm.precision == "fp16":  # pairs of 16-bit numbers both: where a machine has them, about as fast
            return self.milliseconds(Algorithm(algorithm.tile, "bf16"), layer)
        near = sorted(distances, key=lambda pair: pair[0])[:NEAREST]
        if not near:
            return None
        if near[0][0] == 0:
            return near[0][1].milliseconds
        weights = [1 / distance**2 for distance, _ in near]
        speeds = [math.log(_work(row.algorithm, row.layer) / row.milliseconds) for _, row in near]
        speed = sum(weight * each for weight, each in zip(weights, speeds, strict=True)) / sum(weights)
        return _work(algorithm, layer) / math.exp(speed)


def _work(algorithm: Algorithm, layer: Layer) -> float:
    """Multiply-accumulates of the direct convolution, over whole tiles and whole panels of 8 output channels."""
    tile = algorithm.tile or 1
    pixels = math.ceil(layer.height / tile) * math.ceil(layer.width / tile) * tile**2
    channels_out = math.ceil(layer.channels_out / 8) * 8 if algorithm.tile else layer.channels_out
    return 9.0 * layer.channels_in * channels_out * pixels


def _distance(first: Layer, second: Layer) -> float:
    def place(layer: Layer) -> tuple[float, ...]:
        return math.log2(layer.channels_in), math.log2(layer.channels_out), math.log2(layer.height * layer.width)

    return math.dist(place(first), place(second))


def table(name: str | None = None) -> Table:
    """The table of a class of machines, or that of a file which `runtime.bench --calibrate --json` wrote; None: for this machine.

    Errors: GraphError where there is no such class and no such file, and where the file is no table.
    """
    name = name or _here()
    path = FOLDER / f"{name}.json" if name in classes() else Path(name)
    if not path.is_file():
        raise GraphError(
            f"There are no costs of {name!r}: name a class of machines ({', '.join(classes())}) or a file that "
            "'python -m runtime.bench --calibrate --json' wrote."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise GraphError(f"{path.name} has format {raw['format']}; this version reads {FORMAT}: measure it again.")
        rows = tuple(
            Row(
                Algorithm(int(row["tile"]), str(row["precision"])),
                Layer(*(int(row[key]) for key in ("channels_in", "channels_out", "height", "width"))),
                float(row["ms"]),
            )
            for row in raw["rows"]
        )
        return Table(path.stem, str(raw["machine"]["cpu"]), int(raw["threads"]), rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GraphError(f"{path.name} is no table of costs: {type(error).__name__}: {error}.") from None


def classes() -> list[str]:
    """The classes of machines that have a table."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def _here() -> str:
    """The class of this machine, or FALLBACK where it has no table."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        name = "arm64-neon"
    else:
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            flags = ""
        name = "x86-64-avx512" if "avx512f" in flags else "x86-64-avx2"
    return name if name in classes() else FALLBACK
