"""`runtime.inputs`: the right sizes for every graph, the same numbers everywhere, and token ids that mean something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.inputs import PROMPT, example_inputs, size_of
from runtime.manifest import Package
from runtime.providers import provider
from runtime.session import Sessions
from runtime.tokenizer import Tokenizer

Changed = Callable[[Callable[[dict[str, Any]], None]], Path]


def test_every_graph_runs_on_a_picture_that_is_not_square(tiny_package: Path) -> None:
    package = Package.open(tiny_package)
    with Sessions(package, provider("cpu")) as sessions:
        shapes = {
            name: [output.shape for output in sessions.run(name, example_inputs(package, name, 64, 128, batch=2)).values()]
            for name in package.manifest.components
        }
    assert shapes["text_encoder"][0][:2] == (2, 77)
    assert shapes["unet"] == [(2, 4, 8, 16)]
    assert shapes["vae_encoder"] == [(2, 8, 8, 16)]
    assert shapes["vae_decoder"] == [(2, 3, 64, 128)]


def test_numbers_are_fixed(tiny_package: Path) -> None:
    """The first numbers of MT19937's normal stream from the seed crc32("unet/sample"): another version of numpy gives the same."""
    package = Package.open(tiny_package)
    first, again = (example_inputs(package, "unet", 64, 64)["sample"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    expected = np.random.RandomState(0x6C0EBE0A).standard_normal(first.shape).astype(np.float32)
    np.testing.assert_array_equal(first, expected)
    assert not np.array_equal(first, example_inputs(package, "vae_decoder", 64, 64)["latent_sample"])


def test_token_ids_are_those_of_a_prompt(tiny_package: Path) -> None:
    ids = example_inputs(Package.open(tiny_package), "text_encoder", 64, 64, batch=3)["input_ids"]
    np.testing.assert_array_equal(ids, np.repeat(Tokenizer.from_folder(tiny_package / "tokenizer").encode(PROMPT), 3, axis=0))


def test_axis_of_unknown_meaning_is_refused(changed: Changed) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["components"]["unet"]["inputs"][0]["shape"] = ["batch_size", 4, "rows", "columns"]

    with pytest.raises(InputError, match="'unet' has a free axis 'rows' at 'sample', whose size nobody can guess"):
        example_inputs(Package.open(changed(change)), "unet", 64, 64)


def test_size_of_a_static_package_is_its_own(changed: Changed) -> None:
    package = Package.open(changed(lambda manifest: manifest["pipeline"].update(dynamic=False)))
    assert size_of(package, None, 64) == (64, 64)
    with pytest.raises(InputError, match="this package has a width of 64 only, not 128: export it with --width 128"):
        size_of(package, None, 128)
