"""A folder in the place of another: in one step where the file system has one for it."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Any

AT_FDCWD = -100  # paths are relative to the working directory
EXCHANGE = 2  # RENAME_EXCHANGE of Linux' renameat2(2), RENAME_SWAP of macOS' renamex_np(2)
# what kernels and file systems say that have no such step; network file systems are among them
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def exchange(new: Path, old: Path) -> None:
    """Puts `new` where `old` is, and `old` where `new` is. Both are on one disk.

    On Linux and macOS, on the usual local file systems, there is no moment without a folder at `old`, whatever dies. Elsewhere the old
    folder is moved aside first: it comes back where the new one cannot be moved, but a machine that stops between the two leaves it aside.
    Errors: OSError.
    """
    if not _at_once(new, old):
        aside = new.with_name(f"{new.name}.replaced")
        old.rename(aside)
        try:
            new.rename(old)
        except OSError:
            aside.rename(old)
            raise
        aside.rename(new)


def _at_once(new: Path, old: Path) -> bool:
    """Exchanges both in one step; False where this system has none."""
    libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), EXCHANGE)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(os.fsencode(new), os.fsencode(old), EXCHANGE)
    else:
        return False
    if failed and ctypes.get_errno() not in UNSUPPORTED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    return not failed
