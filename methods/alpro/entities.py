"""The entities of prompts: the most frequent nouns of captions, a line of each with its count.

    python -m methods.alpro.entities data/webvid2m/results_2M_train.csv data/cc3m/cc3m.json \\
        --out data/unigrams.txt

The official list was made by a tagger and is not distributed with its making (docs/papers/alpro.md,
section 3.6). Here a dictionary says what a word can be (`pip install 'tenfold[entities]'`), and its
neighbours decide: before another noun an adjective describes ("red apple"), behind a noun an
inflected verb is one ("a dog plays").
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from methods.alpro.data import CAPTIONS, first_of
from shared.data.errors import DataCorruptError
from shared.data.image_text.annotations import read_annotations
from shared.files import replacing

WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


@lru_cache(maxsize=1 << 16)
def parts_of_speech(word: str) -> Mapping[str, Sequence[str]]:
    """What a word can be, "NOUN", "VERB", "ADJ" and so on, and its base forms as such."""
    try:
        dictionary = import_module("lemminflect")
    except ImportError as error:
        advice = "pip install 'tenfold[entities]'"
        raise ModuleNotFoundError(f"finding nouns needs lemminflect: {advice}") from error
    return dictionary.getAllLemmas(word)


def nouns(caption: str) -> list[str]:
    """The nouns of a caption as they stand there, in lower case."""
    words = WORD.findall(caption.lower())
    kinds = [parts_of_speech(word) for word in words]
    found: list[str] = []
    before: Mapping[str, Sequence[str]] = {}
    for word, kind, behind in zip(words, kinds, [*kinds[1:], {}], strict=False):
        describes = "ADJ" in kind and ("NOUN" in behind or "ADJ" in behind)
        inflected = word not in kind.get("VERB", (word,))
        if "NOUN" in kind and not describes and not (inflected and "NOUN" in before):
            found.append(word)
        before = kind
    return found


def noun_counts(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Nouns with their counts, the most frequent ones first, equally frequent ones by letters."""
    counts = Counter(noun for caption in captions for noun in nouns(caption))
    return sorted(counts.items(), key=lambda row: (-row[1], row[0]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m methods.alpro.entities", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", help="annotations with captions: .csv, .json, .jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000, help="of entities (default 1000)")
    given = parser.parse_args(arguments)
    try:
        values = (first_of(entry, CAPTIONS) for entry in read_annotations(given.files))
        texts = (value if isinstance(value, list) else [value] for value in values)
        counts = noun_counts(t for several in texts for t in several if isinstance(t, str))
        if len(counts) < given.count:
            print(f"entities: the captions have {len(counts)} nouns only", file=sys.stderr)
        lines = (f"{noun} {count}\n" for noun, count in counts[: given.count])
        with replacing(given.out) as file:
            file.write("".join(lines).encode())
    except (DataCorruptError, ModuleNotFoundError, OSError, ValueError) as error:
        print(f"entities: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
