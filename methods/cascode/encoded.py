"""Token ids of files of queries and codes, read once and kept on disk."""

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from methods.cascode.readers import Accept, Kind, Reader, Text
from methods.cascode.tokenizer import CodeTokenizer, TokenRows
from shared.data.errors import DataCorruptError
from shared.data.loading.feature_cache import Arrays, cache_key, cached

log = logging.getLogger(__name__)
VERSION = 1  # of what is kept
CHUNK = 1000  # texts tokenised at once
LEAKING = 0.05  # share of codes with their query inside, beyond which it is no coincidence
TELLING = 20  # letters of a query that are in a code by no coincidence


class Encoded(NamedTuple):
    """N entries: identities, and by kind their token ids and 64-bit numbers of their texts (N,).

    Texts that are equal in lower case have equal numbers. No special tokens, see `CodeTokenizer`.
    """

    urls: list[str]
    tokens: dict[Kind, TokenRows]
    numbers: dict[Kind, NDArray[np.int64]]


def encode_files(
    files: Sequence[Path],
    kinds: Sequence[Kind],
    tokenizer: CodeTokenizer,
    lengths: Mapping[Kind, int],
    identity: str,
    chosen: tuple[str, Accept] | None,
    max_corrupt: float,
    cache: str | None,
) -> Encoded:
    """Read `files` (see `Reader`) and tokenise their texts of `kinds`.

    Warns of entries that can't be used, and of codes that contain their own query: code needs to
    come without its documentation, which is the answer (docs/papers/cascode.md, section 10).

    Args:
        lengths: tokens of each kind that are kept.
        chosen: which entries are used, and a name for that rule; None: all.
        max_corrupt: share of entries that can't be used, beyond which it is an error.
        cache: folder of arrays, named by a hash of all that they depend on; None keeps none.

    Raises:
        DataCorruptError: a file is damaged, too much of it can't be used, or nothing is left.
    """
    rule, accept = chosen or (None, None)
    key = cache_key(
        files, VERSION, tokenizer.fingerprint, dict(lengths), list(kinds), identity, rule
    )
    make = partial(_arrays, Reader(files, kinds, identity, accept), kinds, tokenizer, lengths)
    arrays = cached(cache, key, make)
    total, unusable, refused, leaking = arrays["counts"].tolist()
    problem, name = arrays["problem"].tobytes().decode(), named(files)
    if unusable > max_corrupt * total:
        raise DataCorruptError(
            f"{unusable} of {total} entries can't be used, more than max_corrupt={max_corrupt:g}; "
            f"the first is {problem}. Repair them or raise max_corrupt"
        )
    if unusable:
        warnings.warn(
            f"{unusable} of {total} entries are left out; the first is {problem}", stacklevel=2
        )
    if refused:
        log.info("%s: %d of %d entries are left out by %r", name, refused, total, rule)
    if leaking > LEAKING * total:
        warnings.warn(
            f"{name}: {leaking} of {total} codes contain their query; code_tokens must come "
            "without the documentation",
            stacklevel=2,
        )
    data, ends = arrays["urls"].tobytes(), arrays["url_ends"].tolist()
    return Encoded(
        [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)],
        {kind: TokenRows(arrays[f"{kind}_ids"], arrays[f"{kind}_ends"]) for kind in kinds},
        {kind: arrays[f"{kind}_numbers"] for kind in kinds},
    )


def named(files: Sequence[Path]) -> str:
    """Name of the files for messages."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _arrays(
    reader: Reader,
    kinds: Sequence[Kind],
    tokenizer: CodeTokenizer,
    lengths: Mapping[Kind, int],
) -> Arrays:
    urls: list[bytes] = []
    tokens: dict[Kind, list[TokenRows]] = {kind: [] for kind in kinds}
    numbers: dict[Kind, list[int]] = {kind: [] for kind in kinds}
    leaking = 0
    texts = iter(reader)
    while chunk := list(islice(texts, CHUNK)):
        urls += [text.identity.encode() for text in chunk]
        leaking += sum(map(_leaks, chunk))
        for kind in kinds:
            plain = [getattr(text, kind) for text in chunk]
            rows = [ids[: lengths[kind]] for ids in tokenizer.encode(plain)]
            tokens[kind].append(TokenRows.of(rows))
            numbers[kind] += map(_number, plain)
    if not urls:
        raise DataCorruptError(
            f"{named(reader.files)}: none of {reader.total} entries is left; {reader.refused} are "
            f"left out on purpose, {reader.unusable} can't be used {reader.problem}".rstrip()
        )
    arrays: Arrays = {
        "counts": np.array([reader.total, reader.unusable, reader.refused, leaking]),
        "problem": np.frombuffer(reader.problem.encode(errors="replace"), np.uint8),
        "urls": np.frombuffer(b"".join(urls), np.uint8),
        "url_ends": np.cumsum([len(url) for url in urls]),
    }
    for kind in kinds:
        joined = TokenRows.joined(tokens[kind])
        arrays |= {f"{kind}_ids": joined.ids, f"{kind}_ends": joined.ends}
        arrays[f"{kind}_numbers"] = np.array(numbers[kind], np.int64)
    return arrays


def _number(text: str) -> int:
    digest = hashlib.blake2b(text.lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _leaks(text: Text) -> bool:
    """Whether the code contains the beginning of its query, spaces and case aside."""
    query = "".join(text.query.split()).lower()[: 2 * TELLING]
    return len(query) >= TELLING and query in "".join(text.code.split()).lower()
