"""What is shown of a package's plan where its device is not at hand."""

from __future__ import annotations

from typing import Any

from runtime.manifest import ComponentEntry, Manifest
from runtime.placement import predicted


def manifest(**plans: dict[str, Any]) -> Manifest:
    components = {name: ComponentEntry(f"{name}/model.onnx", "", (), (), 20, plan=plan) for name, plan in plans.items()}
    return Manifest("tiny", {}, "xnnpack", "fp32", {}, {}, components, {}, {})


def test_a_provider_beside_the_cpu_tells_its_share_of_the_work() -> None:
    plan = {"target": "xnnpack", "nodes": 99, "taken": 40, "partitions": [30, 10], "is_compiled": False, "crossing_bytes": 0,
            "macs": {"taken": 998, "all": 1000}}  # fmt: skip
    assert predicted(manifest(unet=plan), "xnnpack").splitlines() == [
        "Predicted for xnnpack from the tables and rules of ONNX Runtime's provider; nothing was measured:",
        "  unet  40 of 99 nodes with 99.8 % of the multiply-accumulates",
    ]


def test_borders_are_told_where_something_crosses_them() -> None:
    plan = {"target": "xnnpack", "nodes": 9, "taken": 8, "partitions": [5, 3], "is_compiled": True, "crossing_bytes": 2_500_000}
    assert "  unet  8 of 9 nodes in 2 partitions, 2.5 MB cross their borders in a run" in predicted(manifest(unet=plan), "xnnpack")
