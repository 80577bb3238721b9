"""Objects that captions mention, by exact matches of word pieces.

Source: docs/papers/pb_ovd.md, section 3.1; salesforce/PB-OVD@f62bdfc
`pseudo_bbox_generation.py:generate_pseudo_bbox`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shared.data.errors import DataCorruptError
from shared.data.readers.files import is_text, read_json, shortened
from shared.data.text.wordpiece import WordPiece

MOST_NAMES = 100_000  # of a vocabulary, all that stands for an object included
LONGEST_NAME = 200  # characters


class Mention(NamedTuple):
    """An object's name, the pieces by which it is meant, and their places `left` to `right - 1` in
    the model's input, of which place 0 is [CLS]."""

    name: str
    pieces: str
    left: int
    right: int


class ObjectWords:
    """Finds the objects of a vocabulary in captions.

    Args:
        vocabulary: names of objects, each with the texts that count as a mention of it.
        unknown: whether texts of unknown words match any unknown word, as in the official code.
    """

    def __init__(
        self, vocabulary: Mapping[str, Sequence[str]], tokenizer: WordPiece, unknown: bool
    ) -> None:
        entries = [(name, text) for name, texts in vocabulary.items() for text in texts]
        ids, mask = tokenizer.batch(text for _, text in entries)
        tokens = tokenizer.tokens
        self.unmatched: list[str] = []  # texts that are left out for their unknown words
        self._entries: list[tuple[str, str]] = []
        self._places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for (name, text), row, length in zip(entries, ids, mask.sum(dim=1).tolist(), strict=True):
            pieces = tuple(row[1:length].tolist())
            if tokenizer.unk_id in pieces and not unknown:
                self.unmatched.append(text)
                continue
            if pieces:
                self._places[pieces].append(len(self._entries))
            self._entries.append((name, " ".join(tokens[piece] for piece in pieces)))
        self._lengths = sorted({len(pieces) for pieces in self._places})

    def mentions(self, ids: Sequence[int]) -> list[Mention]:
        """The objects that a caption mentions, `ids` its tokens from [CLS] on without padding: in
        the vocabulary's order, each text by its first occurrence."""
        spans: dict[int, tuple[int, int]] = {}
        for length in self._lengths:
            for left in range(1, len(ids) - length + 1):
                for entry in self._places.get(tuple(ids[left : left + length]), ()):
                    spans.setdefault(entry, (left, left + length))
        return [Mention(*self._entries[entry], *span) for entry, span in sorted(spans.items())]

    @property
    def tokenized(self) -> dict[str, list[str]]:
        """Each object's texts as pieces with spaces between."""
        pieces: dict[str, list[str]] = defaultdict(list)
        for name, text in self._entries:
            pieces[name].append(text)
        return dict(pieces)


def read_object_names(path: str | Path) -> dict[str, list[str]]:
    """Names of objects with the texts that mean them, from a JSON object of lists of texts.

    DataNotFoundError if there is no such file, DataCorruptError of anything else in it.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        wanted = 'a JSON object as {"tv": ["tv", "television"]}'
        raise DataCorruptError(f"{path}: expected {wanted}, got {shortened(content)}")
    for name, texts in content.items():
        if not isinstance(texts, list) or not texts:
            told = f"{shortened(texts)}, expected a list of texts"
            raise DataCorruptError(f"{path}: {shortened(name)} is {told}")
        for text in (name, *texts):
            if not is_text(text) or not any(map(str.isalnum, text)) or len(text) > LONGEST_NAME:
                told = f"{shortened(text)} is no text of a word and at most {LONGEST_NAME} signs"
                raise DataCorruptError(f"{path}: {shortened(name)}: {told}")
    if (count := sum(map(len, content.values()))) > MOST_NAMES:
        raise DataCorruptError(f"{path}: {count} texts, more than {MOST_NAMES}")
    return content
