"""Prints a folder with the C++ headers of ONNX Runtime: the one that is given, an installed one, or one that it fetches and caches.

Called by CMakeLists.txt with any Python 3; nothing but the standard library, and npm where the headers have to be fetched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HEADER = "onnxruntime_cxx_api.h"
OLDEST_VERSION = 17  # of the interface: ParallelFor and shape inference of custom ops
PACKAGE = "com.github.asus4.onnxruntime"
PACKAGE_VERSION = "0.4.9"  # the official binaries of ONNX Runtime 1.29.0
PACKAGE_SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
ARCHIVE = "package/Plugins/Android/onnxruntime.aar"


class Failure(Exception):
    """One sentence for the user."""


def headers(given: str) -> Path:
    """The folder that holds the headers. Errors: Failure."""
    if given:
        folder = Path(given)
        if version(folder) is None:
            raise Failure(f"ORT_INCLUDE_DIR is '{given}', and there is no {HEADER} with its onnxruntime_c_api.h in it")
        return folder
    return installed() or fetched()


def version(folder: Path) -> int | None:
    """ORT_API_VERSION of the headers in a folder, None where they are not there."""
    interface = folder / "onnxruntime_c_api.h"
    if not interface.is_file() or not (folder / HEADER).is_file():
        return None
    found = re.search(r"#define ORT_API_VERSION (\d+)", interface.read_text(encoding="utf-8", errors="replace"))
    return int(found[1]) if found else None


def installed() -> Path | None:
    """Headers of a development package: Debian, Homebrew, conda-forge, /usr/local."""
    prefixes = [os.environ.get("CONDA_PREFIX"), "/usr", "/usr/local", "/opt/homebrew"]
    for prefix in filter(None, prefixes):
        for below in ("include/onnxruntime", "include/onnxruntime/core/session", "include"):
            folder = Path(prefix) / below
            if (version(folder) or 0) >= OLDEST_VERSION:
                return folder
    return None


def fetched() -> Path:
    """Headers out of the npm package, from the user's cache where an earlier call left them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handheld-diffusion"
    folder = cache / f"onnxruntime-headers-{PACKAGE_SHA256[:16]}"
    if version(folder) is not None:
        return folder
    if shutil.which("npm") is None:
        raise Failure(
            "the C++ headers of ONNX Runtime are not installed, and npm, which would fetch them, is not either: "
            "install one of the two, or give their folder as ORT_INCLUDE_DIR"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        partial = Path(scratch) / "headers"
        extract(download(Path(scratch)), partial)
        try:
            partial.rename(folder)  # in one step, so that a cached folder is always a whole one
        except OSError:
            if version(folder) is None:  # another call was not faster
                raise
    return folder


def download(folder: Path) -> Path:
    """The package's file, checked against its hash."""
    print(f"fetching the headers of ONNX Runtime once: npm pack {PACKAGE}@{PACKAGE_VERSION}, about 150 MB", file=sys.stderr)
    call = ["npm", "pack", f"{PACKAGE}@{PACKAGE_VERSION}", "--pack-destination", str(folder)]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    files = list(folder.glob("*.tgz"))
    if result.returncode != 0 or not files:
        reason = next((line for line in reversed(result.stderr.splitlines()) if line.strip()), "no reason given")
        raise Failure(
            f"npm could not fetch {PACKAGE}@{PACKAGE_VERSION} for the headers of ONNX Runtime ({reason.strip()}): "
            "try again with a network, or give their folder as ORT_INCLUDE_DIR"
        )
    with files[0].open("rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != PACKAGE_SHA256:
        raise Failure(f"{PACKAGE}@{PACKAGE_VERSION} has the SHA-256 {digest.hexdigest()} and not the pinned one: it is not used")
    return files[0]


def extract(package: Path, folder: Path) -> None:
    """Takes the headers, and nothing else, out of the Android archive inside the package."""
    folder.mkdir()
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(package) as outer:
            member = outer.extractfile(ARCHIVE)
            if member is None:
                raise Failure(f"{package.name} holds no {ARCHIVE}")
            shutil.copyfileobj(member, archive)
        with zipfile.ZipFile(archive) as inner:
            for name in inner.namelist():
                if re.fullmatch(r"headers/[\w.]+", name):
                    (folder / Path(name).name).write_bytes(inner.read(name))


if __name__ == "__main__":
    try:
        print(headers(sys.argv[1] if len(sys.argv) > 1 else ""))
    except (Failure, OSError) as failure:
        sys.exit(str(failure))
