"""BERT's uncased WordPiece as the image-text models use it: [CLS] in front, [SEP] behind or not.

Sources: docs/papers/albef.md, section 4.3; salesforce/ALBEF@b9727e4 `models/tokenization_bert.py`;
docs/papers/blip.md, sections 3.1 and 7.3; salesforce/BLIP@056a169 `models/blip.py:init_tokenizer`.

Torch is imported only where tensors are made: who reads a vocabulary need not wait for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.readers.files import not_found, read_text, shortened
from shared.data.readers.model_files import HUB, PACKAGE, model_files

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = "vocab.txt"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NAME = r"(?:PAD|UNK|CLS|SEP|MASK)\]"
_WITHIN_A_WORD = re.compile(rf"(?<=\S)\[(?={_NAME})|\[(?={_NAME}\S)")
# What transformers' `clean_up_tokenization` (4.15) takes away, in its order.
_CLEANED_UP = [(f" {sign}", sign) for sign in ".?!,"] + [(" ' ", "'")]
_CLEANED_UP += [(f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")]


class WordPiece:
    """Turns texts into ids and back; `len()` is the size of the vocabulary.

    A special token written out in a text, as "[SEP]", becomes its id where it is a word of its own.
    `vocab` is the path of a vocabulary (one token a line, its id is its place), a folder with a
    `vocab.txt`, "hub:NAME" (a model of the Hugging Face hub), or "package:NAME", an installed
    Python package that carries one; or a list of the tokens themselves, as checkpoints keep them.

    `added` are more special tokens; those that the vocabulary lacks get the ids behind it, in this
    order. With `closed` each text ends with [SEP], however short it is cut, and special tokens
    count within words, too: these are the ids of transformers' BertTokenizer.
    """

    def __init__(
        self, vocab: str | Path | Sequence[str], added: Sequence[str] = (), closed: bool = False
    ) -> None:
        origin = "vocabulary"
        if isinstance(vocab, str | Path):
            path = find_vocabulary(vocab)
            vocab, origin = read_text(path).removesuffix("\n").split("\n"), str(path)
        numbers = _numbered(vocab, origin)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            numbers[token] for token in _SPECIAL
        )
        # Batches are small, and the library's threads don't survive the fork of a loader's workers.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.add_special_tokens([*_SPECIAL, *added])
        self.closed = closed
        self._special = {self.id_of(token) for token in (*_SPECIAL, *added)}

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def tokens(self) -> list[str]:
        """All tokens in the order of their ids; of these the same tokeniser can be made again."""
        numbers = self._tokenizer.get_vocab()
        return sorted(numbers, key=numbers.__getitem__)

    def to_json(self) -> str:
        """The `tokenizer.json` by which other programs get the ids of a `closed` one."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        ends = ("[SEP]", self.sep_id), ("[CLS]", self.cls_id)
        tokenizer.post_processor = processors.BertProcessing(*ends)
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer.to_str(pretty=True)

    def id_of(self, token: str) -> int:
        """The id of a token; ValueError if the vocabulary lacks it."""
        if (number := self._tokenizer.token_to_id(token)) is None:
            raise ValueError(f"the vocabulary of {len(self)} tokens has no {token}")
        return number

    def batch(
        self, texts: Iterable[str], max_length: int | None = None, pad_to: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ids and mask (1 for tokens, 0 for padding), (N, L) int64 each. Texts are cut to
        `max_length` tokens, [CLS] and [SEP] included; L is `pad_to`, by default that of the longest
        text."""
        import torch

        end = [self.sep_id] if self.closed else []
        if max_length is not None and max_length < 1 + len(end):
            raise ValueError(f"max_length={max_length} has no room for [CLS]{' [SEP]' * len(end)}")
        # The library finds a special token within a word, too.
        words = texts if self.closed else [_WITHIN_A_WORD.sub("[ ", text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(words), add_special_tokens=False)
        most = None if max_length is None else max_length - 1 - len(end)
        rows = [[self.cls_id, *encoding.ids[:most], *end] for encoding in encodings]
        longest = max(map(len, rows), default=0)
        length = longest if pad_to is None else pad_to
        if longest > length:
            raise ValueError(f"a text of {longest} tokens, but pad_to={pad_to}: give max_length")
        ids = [row + [self.pad_id] * (length - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
        shape = (len(rows), length)
        return torch.tensor(ids).view(shape).long(), torch.tensor(mask).view(shape).long()

    def answers(self, texts: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask of answers: [CLS] x [SEP], padded to the longest."""
        return self.batch(texts if self.closed else [f"{text} [SEP]" for text in texts])

    def opening(self, prompt: str, first: str = "[DEC]") -> Tensor:
        """(L,) int64: the token `first` and a prompt's tokens, which a decoder goes on from."""
        ids = self.batch([prompt])[0][0]
        ids[0] = self.id_of(first)
        return ids[:-1] if self.closed else ids

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of ids (N, L), without special tokens, unknown words among them. Pieces of a word
        are joined, and spaces before punctuation and short forms go, as BERT's decoding does."""
        pieces = self.tokens
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(pieces):
            reach = f"{int(ids.min())} to {int(ids.max())}"
            raise ValueError(f"ids of {reach}, but the vocabulary has {len(pieces)} tokens")
        texts = []
        for row in ids.tolist():
            text = " ".join(pieces[number] for number in row if number not in self._special)
            text = text.replace(" ##", "").strip()
            for spaced, plain in _CLEANED_UP:
                text = text.replace(spaced, plain)
            texts.append(text)
        return texts


def find_vocabulary(vocab: str | Path) -> Path:
    """Return the path of the vocabulary that `vocab` names; see `WordPiece`."""
    files = model_files(str(vocab), f"the path of a {VOCABULARY}")
    if files is not None:
        for file in files:
            if file.name == VOCABULARY:
                return file
        raise DataNotFoundError(f"vocabulary {vocab} holds no {VOCABULARY}")
    path = Path(vocab)
    path = path / VOCABULARY if path.is_dir() else path
    if not path.is_file():
        wanted = f'a folder, "{PACKAGE}NAME" or "{HUB}NAME" that holds one'
        told = f"{not_found(path)}. A vocabulary is a {VOCABULARY} of BERT"
        raise DataNotFoundError(f"{told}, or {wanted}")
    return path


def _numbered(tokens: Sequence[str], origin: str) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for place, token in enumerate(tokens):
        if token in numbers:
            told = f"{origin}, line {place + 1}: token {shortened(token)} occurs a second time"
            raise DataCorruptError(f"{told}, first in line {numbers[token] + 1}")
        numbers[token] = place
    if missing := ", ".join(token for token in _SPECIAL if token not in numbers):
        raise DataCorruptError(f"{origin}: no BERT vocabulary, it lacks special tokens: {missing}")
    return numbers
