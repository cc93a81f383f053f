"""`python -m runtime.report`: the page holds every figure it was given, invents none, and asks for nothing from outside."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from runtime.errors import InputError
from runtime.manifest import NAME, ComponentEntry, FileEntry, Manifest, Package, Port
from runtime.report import numbers, page
from runtime.report.__main__ import main

UNET_OPS: dict[str, Any] = {"custom_ops": {"GroupNorm": 61}}
VOID = {"meta", "link", "img", "path", "use", "br"}
BLOCKS = {"p", "dt", "dd", "th", "td", "tr", "li", "h1", "h2", "h3", "figcaption"}
PROMPT = "a <script>alert('x')</script> \"red\" circle & more"


class Page(HTMLParser):
    """What a browser would make of the page: text, attributes, headings; fails where tags are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in BLOCKS:
            self.text += " "

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def words(self) -> str:
        return " ".join(self.text.split())

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


def manifest(**changes: Any) -> Manifest:
    def component(name: str, **others: Any) -> ComponentEntry:
        ports = (Port("x", "float32", (1, 4)),)
        passes = (
            {"name": "fold constants", "applied": 12345, "seconds": 1.25},
            {"name": "fold constants", "applied": 17, "seconds": 0.5},
            {"name": "remove casts", "applied": 0, "seconds": 0.01},
        )
        return ComponentEntry(f"{name}/model.onnx", "a" * 64, ports, ports, 20, passes=passes, **others)

    whole = Manifest(
        model="tiny",
        source={"kind": "folder", "id": "models/<tiny>", "revision": "abc123", "sha256": {"unet/weights.safetensors": "5e" * 32}},
        target="portable",
        precision="fp32",
        tools={"torch": "2.13.0", "onnx-ir": "1.1.0"},
        pipeline={"dynamic": True, "height": 64, "width": 96, "vae_scale_factor": 8},
        components={
            "unet": component("unet", parity={"snr_db": 123.47, "max_abs": 3.1e-6}, parameters=5423716, macs=108_700_000, **UNET_OPS),
            "vae_decoder": component("vae_decoder", parity={"snr_db": 117.21, "max_abs": 0.0125}),
        },
        scheduler={},
        files={"unet/model.onnx": FileEntry("c0ffee" + "0" * 58, 21_643_136), "config.json": FileEntry("f" * 64, 512)},
        trajectory_parity={
            "steps": 20,
            "guidance": 4.5,
            "prompt": PROMPT,
            "seed": 1234,
            "scheduler": "pndm",
            "snr_db_per_step": [124.9, 121.3, 119.6],
            "picture_max_diff": 1.0,
            "prompt_sensitivity": 1.00031,
            "limits": {"picture": 2, "sensitivity": 0.02, "step_snr_db": 61.5, "component_snr_db": 90},
        },
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def bench_row(ep: str, component: str, median: float, **others: Any) -> dict[str, Any]:
    figures = {"median_ms": median, "p50_ms": median, "p90_ms": median * 1.5, "p95_ms": median * 2, "p99_ms": median * 2.5, "runs": 7}
    placed = {"load_ms": 1037.0, "peak_rss_mb": 117.4, "assigned": {"CPUExecutionProvider": 1858}, "flops": 0}
    return {"package": "p", "ep": ep, "component": component, **figures, **placed, **others}


BENCH = {
    "machine": {"cpu": "Example CPU 9000", "cores": 2, "isa": ["avx2", "fma"], "memory_gb": 25.3, "os": "Debian", "onnxruntime": "1.31.1"},
    "settings": {"height": 64, "width": 96, "repeat": 7, "warmup": 3, "threads": 0, "steps": 3},
    "rows": [
        bench_row("cpu", "unet", 40.25, flops=217_400_000),
        bench_row("cpu", "step", 71.5),
        bench_row("webgpu", "unet", 11.75, assigned={"WebGpuExecutionProvider": 1851, "CPUExecutionProvider": 7}),
    ],
    "errors": {"nnapi": "it needs an Android phone & <more>"},
}


def rendered(changed: Manifest | None = None, **parts: Any) -> Page:
    return Page(page.render(page.Report(Package(Path("p"), changed or manifest()), **parts)))


def full_page() -> Page:
    first = np.zeros((8, 12, 3), np.uint8)
    second = first.copy()
    second[2, 3] = (3, 0, 0)
    return rendered(
        comparison=page.Comparison.of(first, second),
        bench=BENCH,
        score={"score": 61 / 64, "prompts": 64},
        sample=page.Sample(second, PROMPT, 99, 20),
    )


def test_every_figure_is_on_the_page() -> None:
    words = full_page().words()
    for figure in [
        "tiny", "models/<tiny>", "abc123", "96 × 64", "0.953",  # headline
        "of 64 prompts drawn as told", "21.6 MB in 2 files", "117.2 dB", "71.5 ms",
        "differ by 3 of 255 at most, in 1.04 % of the pixels", "times 64", "seed 1234", "guidance 4.5", "20 steps of pndm",
        "124.9 dB", "121.3 dB", "119.6 dB", "1.0003 (limit: 1 ± 0.02)", "1 of 255 (limit: 2)",  # trajectory
        "5 423 716", "0.1087", "GroupNorm × 61", "123.5 dB", "3.10 × 10⁻⁶", "0.0125", "below 90.0 dB the export fails",  # components
        "cpu unet 40.2 60.4 101 7 5.40 1 037 117.4 MB", "webgpu unet 11.8 17.6 29.4 7 – 1 037", "cpu one step 71.5",  # latency
        "nnapi: it needs an Android phone & <more>", "webgpu unet 7 1 851",  # placement
        "fold constants 12 345 12 345 2.50", "fold constants 17 17 1.00", "remove casts 0 0 0.02",  # passes
        "Example CPU 9000", "avx2, fma", "torch 2.13.0", "onnx-ir 1.1.0", "c0ffee0000000000", "5e5e5e5e5e5e5e5e", "0.5 kB",
    ]:  # fmt: skip
        assert " ".join(figure.split()) in words, figure
    assert "limit 61.5" in words


def test_nothing_comes_from_outside() -> None:
    html = page.render(page.Report(Package(Path("p"), manifest()), bench=BENCH))
    parsed = full_page()
    for attribute in ("src", "href", "srcset", "action", "xlink:href"):
        assert all(value.startswith(("data:", "#")) for value in parsed.values(attribute)), attribute
    assert not {"script", "iframe", "object", "form"} & set(parsed.tags)
    assert not re.search(r"https?:|@import|url\((?!#)", html)


def test_text_of_users_is_text() -> None:
    parsed = full_page()
    assert "script" not in parsed.tags
    assert PROMPT in parsed.words()
    assert any(PROMPT in value for value in parsed.values("alt"))


def test_page_is_readable_without_seeing_it() -> None:
    parsed = full_page()
    assert parsed.tags.count("img") == 4
    assert all(parsed.values("alt"))
    assert len(parsed.values("alt")) == 4
    assert parsed.tags.count("h1") == 1
    assert parsed.tags.count("th") == len([1 for tag, name, _ in parsed.attributes if (tag, name) == ("th", "scope")]) > 20
    charts = [value for tag, name, value in parsed.attributes if name == "aria-label" and "chart" in value]
    assert any("from 124.9\u202fdB after the first step to 119.6\u202fdB after the last of 3" in label for label in charts)
    assert len(charts) == 2
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert ("html", "lang", "en") in parsed.attributes


def test_what_was_not_checked_is_said_and_nothing_invented() -> None:
    components = {"unet": dataclasses.replace(manifest().components["unet"], parity=None, passes=())}
    parsed = rendered(manifest(components=components, trajectory_parity=None, tools={}))
    words = parsed.words()
    assert "Parity with torch not checked the whole picture was not compared" in words
    assert "Weakest component not checked" in words
    assert "Not checked: the package holds no pictures of both" in words
    assert "Not checked: the package was exported without the trajectory check" in words
    assert "One step not measured" in words
    assert "Score not scored" in words
    assert words.count("Not measured: no figures of runtime.bench were given (--bench).") == 2
    assert "No pass was run, or none was recorded" in words
    assert "dB" not in words
    assert "img" not in parsed.tags
    assert "svg" not in parsed.tags


def test_one_unchecked_component_is_named() -> None:
    components = manifest().components
    components["vae_decoder"] = dataclasses.replace(components["vae_decoder"], parity=None)
    words = rendered(manifest(components=components)).words()
    assert "Weakest component 123.5 dB vae_decoder not checked" in words


def test_random_weights_are_marked() -> None:
    words = rendered(manifest(source={"kind": "random", "seed": 7})).words()
    assert "random numbers of seed 7, for work without the checkpoint: its pictures show nothing" in words


def test_passes_that_did_nothing_are_dimmed() -> None:
    table = page.pass_table(manifest())
    assert [(row["name"], row["total"]) for row in table] == [("fold constants", 24690), ("fold constants", 34), ("remove casts", 0)]
    assert page.render(page.Report(Package(Path("p"), manifest()))).count('<tr class="idle">') == 1


def test_what_passes_chose_and_left_alone_is_told_with_the_reasons() -> None:
    chosen, left = "Conv 'a': F(4x4), 13.82 ms, directly 36.83 ms", "Conv 'b': its stride is <2x2>"
    step = {"name": "fuse convolutions", "applied": 1, "seconds": 0.1, "notes": (chosen,), "refused": (left,)}
    unet = dataclasses.replace(manifest().components["unet"], passes=(step,))
    words = rendered(manifest(components={**manifest().components, "unet": unet})).words()
    assert f"unet, fuse convolutions: 1 chosen, 1 left alone Left alone, and why {left} Chosen {chosen}" in words
    assert "left alone" not in rendered().words()


@pytest.mark.parametrize(("largest", "factor", "shown"), [(0, 1, 0), (1, 64, 64), (2, 64, 128), (5, 32, 160), (200, 1, 200), (255, 1, 255)])
def test_difference_is_amplified_as_far_as_it_goes(largest: int, factor: int, shown: int) -> None:
    first = np.zeros((2, 2, 3), np.uint8)
    second = first.copy()
    second[0, 0, 1] = largest
    compared = page.Comparison.of(first, second)
    assert (compared.largest, compared.factor, int(compared.difference.max())) == (largest, factor, shown)
    assert compared.differing == (0.25 if largest else 0)


def test_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"the pictures to compare have different sizes: \(3, 2\) and \(2, 2\)"):
        page.Comparison.of(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (40.25, "40.2"), (1037.0, "1\u202f037"), (0.001234, "0.00123"), (3.1e-6, "3.10 × 10⁻⁶"), (2.5e7, "2.50 × 10⁷")],
)
def test_quantities_have_three_digits(value: float, text: str) -> None:
    assert numbers.quantity(value) == text


def test_same_inputs_give_the_same_page() -> None:
    one, other = (page.render(page.Report(Package(Path("p"), manifest()), bench=BENCH)) for _ in range(2))
    assert one == other


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that is a manifest and nothing else."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / NAME).write_text(manifest(components={}, files={}).to_json())
    return folder


def test_command_writes_the_page_with_pictures_and_figures(package: Path, tmp_path: Path) -> None:
    parity = tmp_path / "parity"
    parity.mkdir()
    for name, value in (("torch", 100), ("onnx", 102)):
        Image.new("RGB", (4, 4), (value, value, value)).save(parity / f"{name}.png")
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    out = tmp_path / "new" / "report.html"
    result = run(package, "--out", out, "--bench", tmp_path / "bench.json", "--parity", parity)
    assert result.exit_code == 0, result.output
    words = Page(out.read_text(encoding="utf-8")).words()
    assert "differ by 2 of 255 at most, in 100 % of the pixels" in words
    assert "webgpu unet 11.8" in words


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("no json", "can't be read as JSON"),
        ("[1]", "holds no JSON object"),
        ("{}", "lacks what the report needs"),
        ('{"rows": [{"ep": "cpu"}], "machine": {}, "settings": {}, "errors": {}}', "lacks what the report needs"),
    ],
)
def test_wrong_benchmark_exits_2(package: Path, tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "bench.json").write_text(content)
    result = run(package, "--bench", tmp_path / "bench.json", "--out", tmp_path / "report.html")
    assert result.exit_code == 2
    assert sentence in result.output
    assert not (tmp_path / "report.html").exists()


def test_folder_without_pictures_exits_2(package: Path, tmp_path: Path) -> None:
    result = run(package, "--parity", tmp_path, "--out", tmp_path / "report.html")
    assert result.exit_code == 2
    assert f"'{tmp_path}' has no torch.png and onnx.png" in result.output


def test_without_jinja2_the_command_says_what_to_install(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **others: Any) -> Any:
        if name == "runtime.report" and arguments[2] == ("page",):
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        return original(name, *arguments, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    result = run(package, "--out", tmp_path / "report.html")
    assert result.exit_code == 3
    assert "the report needs jinja2: pip install 'handheld-diffusion[report]'" in result.output
