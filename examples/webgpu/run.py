"""Runs the components of a static package on WebGPU in a headless Chromium, and holds them against ONNX Runtime's CPU provider.

    npm pack onnxruntime-web@1.30.0 && tar xzf onnxruntime-web-1.30.0.tgz
    python -m export tiny build/tiny-webgpu --target webgpu --height 64 --width 64
    python examples/webgpu/run.py build/tiny-webgpu --onnxruntime-web package/dist

It needs no GPU: Chromium brings SwiftShader, an adapter in software. So this checks what the graphs compute, and says nothing of a
device's speed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import click
import numpy as np

from runtime.cli import command
from runtime.compare import snr_db
from runtime.errors import CheckFailed, InputError, Unavailable
from runtime.manifest import ComponentEntry, Package
from runtime.providers import provider
from runtime.session import Sessions

PAGE = Path(__file__).with_name("page.html")
LEAST_SNR_DB = 80.0  # float32 on both sides, summed in another order, and an erf of 1.5e-7 in WebGPU's GELU
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-webgpu", "--enable-features=Vulkan,WebGPU",
         "--use-vulkan=swiftshader", "--use-webgpu-adapter=swiftshader", "--disable-vulkan-surface", "--ignore-gpu-blocklist",
         "--enable-logging=stderr", "--v=0")  # fmt: skip
TYPES = {".html": "text/html", ".json": "application/json", ".mjs": "text/javascript", ".wasm": "application/wasm"}


@dataclass
class Exchange:
    """What page and program hand each other: inputs and outputs by (component, name), and what the page says."""

    folders: tuple[Path, ...]
    jobs: bytes
    inputs: dict[tuple[str, str], np.ndarray]
    outputs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """Serves the page, the files of onnxruntime-web and of the package, and the inputs; takes the outputs."""

    def __init__(self, exchange: Exchange, *arguments: object) -> None:
        self.exchange = exchange
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        url = urlparse(self.path)
        if url.path == "/jobs.json":
            return self._answer(self.exchange.jobs, TYPES[".json"])
        if url.path == "/input":
            return self._answer(self.exchange.inputs[self._names(url.query)].tobytes())
        for folder in self.exchange.folders:
            file = folder / url.path.lstrip("/")
            if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
                return self._answer(file.read_bytes(), TYPES.get(file.suffix, "application/octet-stream"))
        return self.send_error(404)

    def do_POST(self) -> None:
        url, body = urlparse(self.path), self.rfile.read(int(self.headers["Content-Length"] or 0))
        if url.path == "/output":
            self.exchange.outputs[self._names(url.query)] = body
        elif url.path == "/said":
            self.exchange.said.append(body.decode())
        else:
            self.exchange.done.set()
        self._answer(b"")

    def log_message(self, *_: object) -> None:
        """Nothing: the page tells what matters."""

    def _names(self, query: str) -> tuple[str, str]:
        names = parse_qs(query)
        return names["job"][0], names["name"][0]

    def _answer(self, body: bytes, content_type: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def seeded(entry: ComponentEntry, name: str) -> dict[str, np.ndarray]:
    """Inputs of a component: normal numbers, a timestep in the middle, ids of the first words. Errors: InputError where an axis is free."""
    generator, arrays = np.random.default_rng(0), {}
    for port in entry.inputs:
        shape = [size for size in port.shape if isinstance(size, int)]
        if len(shape) < len(port.shape):
            raise InputError(f"'{name}' has free axes: export the package with --height and --width")
        kind = np.dtype(port.dtype)
        numbers = np.full(shape, 501.0) if port.name == "timestep" else generator.normal(size=shape)
        arrays[port.name] = np.asarray(numbers if kind.kind == "f" else generator.integers(0, 300, shape), kind)
    return arrays


def browse(exchange: Exchange, browser: str, seconds: float) -> str:
    """Opens the page, waits until it is done, and returns what the browser logged. Errors: Unavailable, CheckFailed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, exchange))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryFile("w+", errors="replace") as log:
        address = f"http://127.0.0.1:{server.server_port}/page.html"
        process = subprocess.Popen([browser, *FLAGS, f"--user-data-dir={profile}", address], stdout=log, stderr=log)
        in_time = exchange.done.wait(seconds)
        process.terminate()
        process.wait()
        server.shutdown()
        log.seek(0)
        text = log.read()
    failure = next((said for said in exchange.said if said.startswith("error: ")), "" if in_time else "error: the page did not end in time")
    if "WebGPU has no adapter" in failure or "has no WebGPU" in failure:
        raise Unavailable(failure.removeprefix("error: "))
    if failure:
        raise CheckFailed(failure.removeprefix("error: "))
    return text


def placements(log: str) -> Iterable[str]:
    """What ONNX Runtime said of where each session's nodes run, sessions in order."""
    return re.findall(r"VerifyEachNodeIsAssignedToAnEp\]\s+((?:All nodes|Node\(s\)) placed on \[\w+\]\. Number of nodes: \d+)", log)


@command
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--onnxruntime-web", "web", required=True, type=click.Path(path_type=Path), help="The folder dist of the npm package.")
@click.option("--browser", default=shutil.which("chromium"), help="A Chromium.")
@click.option("--component", "names", multiple=True, help="Only this one; repeatable.  [default: all]")
@click.option("--subgroups", is_flag=True, help="Let the provider use subgroups: not with SwiftShader.")
@click.option("--seconds", default=900.0, help="How long the page may take.")
def main(package: Path, web: Path, browser: str | None, names: tuple[str, ...], subgroups: bool, seconds: float) -> None:
    """Runs the components of PACKAGE on WebGPU and on the CPU, and compares them."""
    if not browser:
        raise Unavailable("there is no chromium on the path: name one with --browser")
    opened = Package.open(package)
    entries = {name: entry for name, entry in opened.manifest.components.items() if not names or name in names}
    inputs = {name: seeded(entry, name) for name, entry in entries.items()}
    jobs = [
        {
            "name": name,
            "file": Path(entry.file).name,
            "data": Path(entry.data).name if entry.data else "",
            "inputs": [{"name": port, "type": str(array.dtype), "shape": array.shape} for port, array in inputs[name].items()],
        }
        for name, entry in entries.items()
    ]
    flat = {(name, port): array for name, arrays in inputs.items() for port, array in arrays.items()}
    exchange = Exchange((PAGE.parent, web, opened.path), json.dumps({"jobs": jobs, "subgroups": subgroups}).encode(), flat)
    log = browse(exchange, browser, seconds)
    click.echo("\n".join([*exchange.said, *placements(log)]))
    with Sessions(opened, provider("cpu")) as sessions:
        for name, arrays in inputs.items():
            for output, expected in sessions.run(name, arrays).items():
                got = np.frombuffer(exchange.outputs[name, output], expected.dtype).reshape(expected.shape)
                decibel = snr_db(expected, got)
                click.echo(f"{name}: {output} {decibel:.1f} dB from the CPU's")
                if not decibel >= LEAST_SNR_DB:
                    raise CheckFailed(f"'{name}' is {decibel:.1f} dB from the CPU's result, where {LEAST_SNR_DB:.0f} are asked for")


if __name__ == "__main__":
    main()
