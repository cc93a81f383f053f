"""The map of an accelerator's plan: as many bars as runs, as wide as their nodes, red where the CPU keeps them."""

from __future__ import annotations

import re

from runtime.manifest import ComponentEntry, HostEntry, Port
from runtime.report.placement import drawing, maps


def test_a_bar_for_each_run() -> None:
    svg = drawing([[1, 5], [0, 1], [2, 4]], 10)
    bars = re.findall(r'<rect x="([\d.]+)" width="([\d.]+)" height="20" fill="([^"]+)"( fill-opacity="0.5")?/>', svg)
    assert [bar[:3] for bar in bars] == [
        ("0.00", "500.00", "var(--series-1)"), ("500.00", "100.00", "var(--warn)"), ("600.00", "400.00", "var(--series-1)"),
    ]  # fmt: skip
    assert [bool(bar[3]) for bar in bars] == [False, False, True]  # partitions side by side are told apart


def test_components_without_a_plan_have_no_row() -> None:
    plan = {"partitions": [9], "taken": 9, "nodes": 10, "crossing_bytes": 2_000_000, "faults": [], "map": [[1, 9], [0, 1]]}
    host = HostEntry("unet/host.onnx", "", (), (Port("time_proj", "float32", (1, 320)),))
    entry = ComponentEntry("unet/model.onnx", "", (), (), 20, plan=plan, host=host)
    (row,) = maps({"unet": entry, "vae_decoder": ComponentEntry("vae_decoder/model.onnx", "", (), (), 20)})
    figures = [row[key] for key in ("name", "partitions", "taken", "nodes", "share", "megabytes", "host", "is_confirmed")]
    assert figures == ["unet", 1, 9, 10, None, 2.0, "time_proj", False]


def test_a_provider_that_runs_node_by_node_has_no_partitions_but_a_share_of_the_work() -> None:
    plan = {"partitions": [4, 2], "is_compiled": False, "taken": 6, "nodes": 9, "crossing_bytes": 0, "faults": [], "checker": None,
            "map": [[1, 4], [0, 3], [2, 2]], "macs": {"taken": 3, "all": 4}}  # fmt: skip
    (row,) = maps({"unet": ComponentEntry("unet/model.onnx", "", (), (), 20, plan=plan)})
    assert (row["partitions"], row["share"]) == (None, 75.0)
