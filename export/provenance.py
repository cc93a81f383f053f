"""SHA-256 of a checkpoint's files, counted in the background while the export works: about two seconds per gigabyte of one core."""

from __future__ import annotations

import threading
from pathlib import Path

from runtime.manifest import sha256_of


class Hashes:
    """Of `files` {name: path}: `start()` begins in the background, `result()` waits for the end (and begins, where nobody has)."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._found: dict[str, str] = {}
        self._error: OSError | None = None
        # a daemon: an export that fails or is interrupted does not wait for it
        self._thread = threading.Thread(target=self._run, name="hash the checkpoint", daemon=True)

    def start(self) -> None:
        """Begins; once is enough."""
        if self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        try:
            for name, path in self._files.items():
                self._found[name] = sha256_of(path)
        except OSError as error:
            self._error = error

    def result(self) -> dict[str, str]:
        """{name: hexadecimal digits}, once all are known. Errors: OSError where a file could not be read."""
        self.start()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return dict(self._found)
