"""The tokenizer against transformers' CLIPTokenizer, live, on the embedded model's vocabulary in every layout that checkpoints have."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from runtime.errors import InputError
from runtime.tokenizer import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"

TEXTS = [
    "a red circle above a blue square on a yellow background",
    "",
    "   ",
    "A Photo, of an ASTRONAUT!!!",
    "it's we're I'LL don't they'd 's 'S ’s",
    "café cafe\u0301 ÀÉÎ naïve Straße İstanbul ǅ ﬁ ㎏ ＡＢＣ",
    "富士山と桜の木 宇航员骑马 한국어 텍스트",
    "हिन्दी ภาษาไทย مرحبا بالعالم שלום Σίσυφος ΣΊΣΥΦΟΣ 𝔘𝔫𝔦 𐍈",
    "👩\u200d🚀🏽 👨\u200d👩\u200d👧\u200d👦 🇩🇪 ❤\ufe0f",
    "x\x00y\x07z\x1b[0m\ufffd\ufeff\u200b",
    "a\t\n b\u00a0c\u3000d  ",
    "12345 3.14159 ½ ² Ⅷ ٣",
    "astronaut! riding? (a) [horse:1.3] {x|y} --ar 16:9 foo_bar-baz “quoted” — dash…",
    f"{START}hi{END} there <|ENDOFTEXT|> <|StartOfText|> <|endoftext",
    "a! b ! !! !",
    "circle " * 75,
    "circle " * 76,
    "unheardof " * 100,
]


def random_texts(count: int) -> list[str]:
    """Seeded strings from scripts, controls, combining marks, emoji, private and unassigned code points, and the pitfalls."""
    rng = random.Random("test_tokenizer")
    blocks = [(32, 127), (0, 32), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x900, 0x980), (0x2000, 0x2070), (0x3040, 0x3100)]
    blocks += [(0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xFE00, 0xFE10), (0x1F300, 0x1F700), (0xE000, 0xE010), (0x10000, 0x20000)]
    pitfalls = [" ", "  ", START, END, "'s", "!", "red"]

    def piece() -> str:
        return chr(rng.randrange(*rng.choice(blocks))) if rng.random() < 0.8 else rng.choice(pitfalls)

    return ["".join(piece() for _ in range(rng.randrange(1, 60))) for _ in range(count)]


def described(content: str, normalized: bool = True, **more: object) -> dict[str, object]:
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False, **more}


def with_files_of_both_generations(folder: Path) -> None:
    """The fixture is that."""


def as_saved_by_transformers_5(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()


def as_stable_diffusion_1(folder: Path, padding: str = END) -> None:
    """vocab.json, merges.txt, and special tokens in two files, of which the second wins."""
    (folder / "tokenizer.json").unlink()
    special = {"bos_token": described(START), "eos_token": described(END), "unk_token": described(END), "pad_token": END}
    config = {key: {"__type": "AddedToken", **value} if isinstance(value, dict) else value for key, value in special.items()}
    more = {"model_max_length": 77, "do_lower_case": True, "errors": "replace", "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **more}))
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": padding}))


def as_stable_diffusion_2(folder: Path) -> None:
    """The padding is an exclamation mark, which then is a special token in prompts too."""
    as_stable_diffusion_1(folder, padding="!")


def as_second_of_sdxl(folder: Path) -> None:
    """Special tokens by id, each with its own way of being looked for."""
    (folder / "tokenizer.json").unlink()
    ids = json.loads((folder / "vocab.json").read_text())
    tokens = {"!": False, START: True, END: False}
    decoder = {str(ids[token]): described(token, normalized, special=True) for token, normalized in tokens.items()}
    config = {"added_tokens_decoder": decoder, "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}))


def with_added_tokens(folder: Path) -> None:
    """Tokens of textual inversions, beyond the vocabulary."""
    as_stable_diffusion_1(folder)
    size = len(json.loads((folder / "vocab.json").read_text()))
    (folder / "added_tokens.json").write_text(json.dumps({"<red>": size, "!!": size + 1}))


LAYOUTS: list[Callable[[Path], None]] = [
    with_files_of_both_generations,
    as_saved_by_transformers_5,
    as_stable_diffusion_1,
    as_stable_diffusion_2,
    as_second_of_sdxl,
    with_added_tokens,
]


@pytest.fixture
def folder(tiny_tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A copy of the embedded model's tokenizer, with the files of both generations of transformers."""
    CLIPTokenizer.from_pretrained(tiny_tokenizer_folder).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((tiny_tokenizer_folder / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("arrange", LAYOUTS, ids=lambda layout: layout.__name__)
def test_ids_are_those_of_transformers(folder: Path, arrange: Callable[[Path], None]) -> None:
    arrange(folder)
    theirs, ours = CLIPTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    texts = [*TEXTS, *random_texts(300), "a <red> square!!!"]
    expected = theirs(texts, padding="max_length", max_length=theirs.model_max_length, truncation=True).input_ids
    ids = ours.encode(texts)
    assert ids.dtype == np.int64
    assert ids.shape == (len(texts), 77)
    different = [text for text, mine, true in zip(texts, ids.tolist(), expected, strict=True) if mine != true]
    assert different == []
    lengths = [len(each) for each in theirs(texts, padding=False, truncation=False).input_ids]
    assert [ours.count(text) for text in texts] == lengths


def test_padding_and_ends(folder: Path) -> None:
    as_stable_diffusion_2(folder)
    ids = json.loads((folder / "vocab.json").read_text())
    row = Tokenizer.from_folder(folder).encode("")[0]
    assert row.tolist() == [ids[START], ids[END], *[ids["!"]] * 75]


def test_a_long_prompt_says_what_is_not_seen(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    fits, too_long = "circle " * 75, "Circle " * 75 + "Above the  Square"
    assert (tokenizer.count(fits), tokenizer.unseen(fits), tokenizer.warning(fits)) == (77, "", "")
    assert tokenizer.unseen(too_long) == "Above the  Square"
    count = tokenizer.count(too_long)
    assert count > 77
    assert tokenizer.warning(too_long) == f"the prompt has {count} tokens; the model reads 77: 'Above the  Square' is not seen"
    np.testing.assert_array_equal(tokenizer.encode(too_long), tokenizer.encode(fits))


def test_refusals(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())

    def refused_with(sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            Tokenizer.from_folder(folder)

    def configure(**changes: object) -> None:
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, **changes}))

    configure(tokenizer_class="T5Tokenizer")
    refused_with("holds a T5Tokenizer: only CLIP's tokenizer is supported")
    configure(model_max_length=1e30)
    refused_with("names no model_max_length: CLIP's is 77")
    configure()
    merges = (folder / "merges.txt").read_text()
    (folder / "merges.txt").write_text(merges + "circle</w> squ\n")
    refused_with("the vocabulary and the merges of .* do not fit together: ")
    (folder / "merges.txt").write_text(merges + "a b c\n")
    refused_with("has a merge that does not join two tokens, 'a b c': the file is damaged")
    (folder / "merges.txt").unlink()
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["end_of_word_suffix"] = None
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    refused_with("tokenizer.json' is not a CLIP tokenizer's: only CLIP's is supported")
    (folder / "tokenizer.json").write_text("[]")
    refused_with("holds no JSON object: the file is damaged")
    (folder / "tokenizer.json").write_text('{"model": ')
    refused_with("is not readable JSON: ")
    (folder / "tokenizer.json").unlink()
    refused_with("has neither vocab.json with merges.txt nor tokenizer.json: it is not a tokenizer's folder")
