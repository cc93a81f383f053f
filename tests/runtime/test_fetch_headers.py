"""Where the kernels' build gets ONNX Runtime's headers from, and what it says where it cannot."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "runtime" / "ops" / "fetch_headers.py"


@pytest.fixture
def fetch_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, on a machine with an empty cache and no development package."""
    spec = importlib.util.spec_from_file_location("fetch_headers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "installed", lambda: None)
    return module


def write_headers(folder: Path, version: int = 29) -> Path:
    folder.mkdir(parents=True)
    (folder / "onnxruntime_c_api.h").write_text(f"#define ORT_API_VERSION {version}\n")
    (folder / "onnxruntime_cxx_api.h").write_text('#include "onnxruntime_c_api.h"\n')
    return folder


def stub_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_given_folder_comes_first(fetch_headers: ModuleType, tmp_path: Path) -> None:
    folder = write_headers(tmp_path / "given")
    assert fetch_headers.headers(str(folder)) == folder


def test_a_development_package_comes_before_the_network(fetch_headers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_headers(tmp_path / "installed")
    monkeypatch.setattr(fetch_headers, "installed", lambda: folder)
    monkeypatch.setenv("PATH", "")
    assert fetch_headers.headers("") == folder


def test_headers_that_are_too_old_are_passed_over(fetch_headers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real search, in a prefix of our own
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path))
    write_headers(tmp_path / "include" / "onnxruntime", version=16)
    assert fetch_headers.installed() != tmp_path / "include" / "onnxruntime"
    new = write_headers(tmp_path / "include" / "onnxruntime" / "core" / "session", version=17)
    assert fetch_headers.installed() == new


def test_a_folder_without_headers_is_one_sentence(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    expected = f"ORT_INCLUDE_DIR is '{tmp_path}', and there is no onnxruntime_cxx_api.h with its onnxruntime_c_api.h in it"
    assert result.stderr.strip() == expected


def test_without_npm_it_says_what_to_install(fetch_headers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(fetch_headers.Failure, match="npm, which would fetch them, is not either: install one of the two"):
        fetch_headers.headers("")


def test_npm_without_a_network_is_told_with_its_reason(fetch_headers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_npm(tmp_path / "bin", monkeypatch, "echo 'npm error network is unreachable' >&2; exit 1")
    with pytest.raises(
        fetch_headers.Failure, match=r"npm could not fetch .* \(npm error network is unreachable\): try again with a network"
    ):
        fetch_headers.headers("")


def package(folder: Path) -> Path:
    """A package of the pinned one's layout, with a library and a header in its archive."""
    with zipfile.ZipFile(folder / "onnxruntime.aar", "w") as archive:
        for header in write_headers(folder / "made").iterdir():
            archive.write(header, f"headers/{header.name}")
        archive.writestr("jni/arm64-v8a/libonnxruntime.so", "code")
    with tarfile.open(folder / "package.tgz", "w:gz") as outer:
        outer.add(folder / "onnxruntime.aar", "package/Plugins/Android/onnxruntime.aar")
    return folder / "package.tgz"


def test_another_package_than_the_pinned_one_is_refused(fetch_headers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_npm(tmp_path / "bin", monkeypatch, f'cp {package(tmp_path)} "$4"')
    with pytest.raises(fetch_headers.Failure, match="and not the pinned one: it is not used"):
        fetch_headers.headers("")
    assert list((tmp_path / "cache" / "handheld-diffusion").iterdir()) == []  # nothing half-fetched stays


def test_only_headers_are_taken_and_kept(fetch_headers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = package(tmp_path)
    stub_npm(tmp_path / "bin", monkeypatch, f'cp {made} "$4"')
    with made.open("rb") as file:
        monkeypatch.setattr(fetch_headers, "PACKAGE_SHA256", fetch_headers.hashlib.sha256(file.read()).hexdigest())
    folder = fetch_headers.headers("")
    assert sorted(path.name for path in folder.iterdir()) == ["onnxruntime_c_api.h", "onnxruntime_cxx_api.h"]
    monkeypatch.setenv("PATH", "")  # the second time nothing is fetched
    assert fetch_headers.headers("") == folder
