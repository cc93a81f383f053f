"""Wall time and peak memory of a command with all its processes, as the figures of docs/measurements.md were taken (Linux).

    python examples/measure.py .venv/bin/python -m export sd14 build/sd14 --weights random --check none
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def family(process: int) -> list[int]:
    """A process and all that it has started."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return [process]
    return [process, *(member for child in children for member in family(int(child)))]


def memory(process: int) -> tuple[int, int]:
    """Anonymous and resident bytes of one process; zeros where it has ended."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line)
        return int(fields["RssAnon"].split()[0]) * 1024, int(fields["VmRSS"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0, 0


def main() -> int:
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:])
    anonymous = resident = 0
    while process.poll() is None:
        now = [memory(member) for member in family(process.pid)]
        anonymous = max(anonymous, sum(a for a, _ in now))
        resident = max(resident, sum(r for _, r in now))
        time.sleep(0.1)
    print(f"{time.perf_counter() - start:.1f} s, {anonymous / 1e9:.2f} GB anonymous and {resident / 1e9:.2f} GB resident at the peaks "
          "(resident counts mapped pages of the checkpoint, which the kernel takes back when it needs them)", file=sys.stderr)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
