"""How an accelerator takes a package, as its manifest says: what there is to show where no such device is at hand."""

from __future__ import annotations

from runtime.manifest import ComponentEntry, Manifest


def predicted(manifest: Manifest, ep: str) -> str:
    """The plan of every component for the provider `ep`, as a table; one sentence where the package was not made for it."""
    planned = {name: entry for name, entry in manifest.components.items() if entry.plan is not None and entry.plan["target"] == ep}
    if not planned:
        return f"The package is for {manifest.target}, with no plan for {ep}: 'python -m export MODEL OUT --target {ep}' makes one."
    width = max(map(len, manifest.components))
    how = "Compiled by QNN" if manifest.compiled else f"Predicted for {ep} from the tables and rules of ONNX Runtime's provider"
    lines = [f"{how}; nothing was measured:"]
    lines += [f"  {name:{width}}  {_placed(entry)}" for name, entry in planned.items()]
    lines += [f"  {name:{width}}  all on the CPU" for name in manifest.components if name not in planned]
    return "\n".join(lines)


def _placed(entry: ComponentEntry) -> str:
    plan = entry.plan
    assert plan is not None
    count, megabytes, macs = len(plan["partitions"]), plan["crossing_bytes"] / 1e6, plan.get("macs", {"taken": 0, "all": 0})
    pieces = f" in {count} partition{'' if count == 1 else 's'}" if plan.get("is_compiled", True) else ""
    share = f" with {100 * macs['taken'] / macs['all']:.1f} % of the multiply-accumulates" if macs["taken"] < macs["all"] else ""
    borders = f", {megabytes:.1f} MB cross their borders in a run" if plan["crossing_bytes"] else ""
    host = f"; the CPU computes {' and '.join(port.name for port in entry.host.outputs)} first" if entry.host else ""
    context = entry.context
    binary = f", {context.bytes / 1e6:.1f} MB for {context.soc}" if context is not None else ""
    return f"{plan['taken']} of {plan['nodes']} nodes{pieces}{share}{binary}{borders}{host}"
