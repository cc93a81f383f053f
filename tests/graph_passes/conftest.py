"""Makes the helpers beside the tests importable."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from networks import NETWORKS, export_dynamo, export_torchscript


@pytest.fixture(scope="session")
def exported(once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str, str], Path]:
    """(network, exporter) -> its graph as exported, made once per run of the tests. Nobody may write to it."""

    def graph(network: str, exporter: str) -> Path:
        export = {"dynamo": export_dynamo, "torchscript": export_torchscript}[exporter]
        folder = once(f"{network}-{exporter}", lambda folder: export(NETWORKS[network](), folder / "model.onnx"))
        return folder / "model.onnx"

    return graph
