"""CLIP's tokenizer (Radford et al. 2021) from the files of a package: byte-level BPE, lower case, `</w>` at word ends, 77 tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from runtime.errors import InputError

CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
# special tokens, contractions, runs of letters, single digits, runs of anything else
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
LONGEST = 10_000  # transformers writes 1e30 where the length is not known


@dataclass(frozen=True)
class Tokenizer:
    """Texts to token ids, id for id what transformers 5's CLIPTokenizer gives from the same folder (see `from_folder`).

    `length` is the number of ids that the text encoder reads, the start and the end token included.
    """

    words: tokenizers.Tokenizer
    length: int
    start: int
    end: int
    padding: int

    @classmethod
    def from_folder(cls, folder: Path | str) -> Self:
        """Reads vocab.json and merges.txt, or else tokenizer.json, and the special tokens from tokenizer_config.json,
        special_tokens_map.json and added_tokens.json.

        transformers 4's (slow) CLIPTokenizer differs for some texts: it drops control characters, knows special tokens in lower case
        only, and mends quotes and ligatures where ftfy is installed; where it is not, it sets Chinese characters apart.
        Errors: InputError where a file is missing or not a CLIP tokenizer's.
        """
        folder = Path(folder)
        config = _json(folder / "tokenizer_config.json") or {}
        whole = _json(folder / "tokenizer.json")
        kind = config.get("tokenizer_class", CLASSES[0])
        if kind not in CLASSES:
            raise InputError(f"'{folder}' holds a {kind}: only CLIP's tokenizer is supported")
        length = config.get("model_max_length", 0)
        if not 2 < length <= LONGEST:
            raise InputError(f"'{folder}/tokenizer_config.json' names no model_max_length: CLIP's is 77")
        if "added_tokens_decoder" not in config:  # files written before transformers 4.34 spread their special tokens
            config |= _json(folder / "special_tokens_map.json") or {}
        added = _added_tokens(folder, config, whole)
        special = {key: _special_token(config.get(key), default, added) for key, default in SPECIAL.items()}
        vocabulary, merges = _vocabulary(folder, whole)
        unknown = str(special["unk_token"])
        try:
            words = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, end_of_word_suffix="</w>"))
        except Exception as error:  # the library raises no narrower one
            raise InputError(f"the vocabulary and the merges of '{folder}' do not fit together: {error}") from error
        words.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        words.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        words.add_tokens([*added.values(), *(token for token in special.values() if token.content not in added)])
        ids = words.get_vocab(with_added_tokens=True)
        start, end, padding = (ids[special[key].content] for key in ("bos_token", "eos_token", "pad_token"))
        return cls(words, int(length), start, end, padding)

    def encode(self, texts: str | Sequence[str]) -> np.ndarray:
        """Ids of one text or of several: int64 [B, length], from the start token, cut off or padded after the end token."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = np.full((len(texts), self.length), self.padding, np.int64)
        for row, encoding in zip(ids, self.words.encode_batch(texts, add_special_tokens=False), strict=True):
            seen = [self.start, *encoding.ids[: self.length - 2], self.end]
            row[: len(seen)] = seen
        return ids

    def count(self, text: str) -> int:
        """Ids that the whole text has, start and end included; above `length` the text encoder does not see the rest."""
        return len(self.words.encode(text, add_special_tokens=False).ids) + 2

    def unseen(self, text: str) -> str:
        """The end of the text that `encode` cuts off; empty where it all fits."""
        offsets = self.words.encode(text, add_special_tokens=False).offsets
        return text[offsets[self.length - 2][0] :] if len(offsets) > self.length - 2 else ""

    def warning(self, text: str) -> str:
        """What to tell the user where a prompt is cut off; empty where it all fits."""
        unseen = self.unseen(text)
        return f"the prompt has {self.count(text)} tokens; the model reads {self.length}: '{unseen}' is not seen" if unseen else ""


SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def _vocabulary(folder: Path, whole: dict[str, Any] | None) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> id, and the merges in the order of their rank."""
    vocabulary, merges = _json(folder / "vocab.json"), folder / "merges.txt"
    if vocabulary is not None and merges.is_file():
        lines = merges.read_text(encoding="utf-8").split("\n")
        return vocabulary, [_pair(line, folder) for line in lines if line and not line.startswith("#version")]
    if whole is None:
        raise InputError(f"'{folder}' has neither vocab.json with merges.txt nor tokenizer.json: it is not a tokenizer's folder")
    model = whole.get("model", {})
    if model.get("end_of_word_suffix") != "</w>":
        raise InputError(f"'{folder}/tokenizer.json' is not a CLIP tokenizer's: only CLIP's is supported")
    return model["vocab"], [_pair(merge, folder) for merge in model["merges"]]


def _pair(merge: str | list[str], folder: Path) -> tuple[str, str]:
    """A merge as both generations of files have it, "a b" or ["a", "b"]."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if len(pair) != 2:
        raise InputError(f"'{folder}' has a merge that does not join two tokens, {merge!r}: the file is damaged")
    return pair[0], pair[1]


def _added_tokens(folder: Path, config: dict[str, Any], whole: dict[str, Any] | None) -> dict[str, AddedToken]:
    """Tokens that are found in the text before it is split, by content, in the order of their ids."""
    if "added_tokens_decoder" in config:
        entries = {int(index): entry for index, entry in config["added_tokens_decoder"].items()}
    else:
        known = {_content(config.get(key, default)) for key, default in SPECIAL.items()}
        listed = _json(folder / "added_tokens.json") or {}
        entries = {index: {"content": text, "normalized": text not in known, "special": text in known} for text, index in listed.items()}
        entries |= {entry["id"]: entry for entry in (whole or {}).get("added_tokens", [])}
    return {entry["content"]: _added_token(entry) for _, entry in sorted(entries.items())}


def _special_token(entry: str | dict[str, Any] | None, default: str, added: dict[str, AddedToken]) -> AddedToken:
    """A special token as the configuration gives it: plain text, or with the way it is looked for in the text."""
    content = _content(entry) if entry is not None else default
    if content in added:
        return added[content]
    return _added_token({**entry, "special": True}) if isinstance(entry, dict) else AddedToken(content, special=True)


def _content(entry: str | dict[str, Any]) -> str:
    return str(entry["content"]) if isinstance(entry, dict) else entry


def _added_token(entry: dict[str, Any]) -> AddedToken:
    return AddedToken(**{key: value for key, value in entry.items() if key not in ("id", "__type")})


def _json(path: Path) -> dict[str, Any] | None:
    """What a file holds; None where there is none. Errors: InputError."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{path}' is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}' holds no JSON object: the file is damaged")
    return content
