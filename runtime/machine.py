"""The machine that figures were taken on, as far as it matters to compare them."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

# flags of the CPU that decide which kernels run, in the spelling of /proc/cpuinfo (x86-64, then arm64)
ISA_FLAGS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """{cpu, cores, isa: [flags], memory_gb, os, architecture, python, numpy, onnxruntime}; what can't be found out is "" or 0."""
    cpu_info = _read("/proc/cpuinfo")
    return {
        "cpu": _field(cpu_info, "model name") or _field(cpu_info, "Hardware") or platform.processor(),
        "cores": usable_cores(),
        "isa": [flag for flag in ISA_FLAGS if flag in (_field(cpu_info, "flags") or _field(cpu_info, "Features")).split()],
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "os": _os_name(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
    }


def usable_cores() -> int:
    """Cores that this process may use, which a container or a task set can make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss_mb() -> float:
    """The most memory that this process has held so far, in MB (10^6 bytes), mapped files included as far as they were touched."""
    if peak := _field(_read("/proc/self/status"), "VmHWM"):
        return int(peak.split()[0]) * 1024 / 1e6
    import resource  # not on every platform; on Linux its figure would include the parent's before exec

    peak_units = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_units / 1e6 if sys.platform == "darwin" else peak_units * 1024 / 1e6


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, AttributeError):
        return 0


def _os_name() -> str:
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.release()}"
    except (OSError, KeyError):
        return platform.platform()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """The value of the first line `name : value`."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
