"""Makes the helpers beside the tests importable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from networks import NETWORKS, export_dynamo, export_torchscript


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> object:
    """(network, exporter) -> its graph as exported. Made once, when first asked for; nobody may write to it."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[tuple[str, str], Path] = {}

    def graph(network: str, exporter: str) -> Path:
        if (network, exporter) not in made:
            export = {"dynamo": export_dynamo, "torchscript": export_torchscript}[exporter]
            made[network, exporter] = export(NETWORKS[network](), folder / f"{network}.{exporter}.onnx")
        return made[network, exporter]

    return graph
