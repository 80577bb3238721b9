"""Rules of texts: how captions and questions are cleaned and which special tokens they get.

Sources: docs/papers/albef.md, section 6.1; salesforce/ALBEF@b9727e4 `dataset/utils.py`;
docs/papers/blip.md, sections 3.1 and 6; salesforce/BLIP@056a169 `data/utils.py`, `models/blip.py:
init_tokenizer`; docs/papers/alpro.md, section 6. They are kept to the letter, oddities included:
published vocabularies of answers and results depend on them.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

_PUNCTUATION = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")
_FEWER_SIGNS = '.!"()*#:;~'  # BLIP keeps , ? ' - / as words
_AS_SPACES = str.maketrans(dict.fromkeys(_FEWER_SIGNS, " "))
_AS_NOTHING = str.maketrans("", "", _FEWER_SIGNS)


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower-case, without punctuation, hyphen and slash as spaces, the first `max_words` words."""
    return _spaced(text.lower().translate(_PUNCTUATION).replace("<person>", "person"), max_words)


def clean_question(text: str, max_words: int) -> str:
    """As `clean_caption`, but runs of spaces stay, and each counts as empty words."""
    return _first_words(text.lower().translate(_PUNCTUATION).rstrip(" "), max_words)


def clean_caption_blip(text: str, max_words: int = 30) -> str:
    """Lower-case, some punctuation as spaces, the first `max_words` words."""
    return _spaced(text.lower().translate(_AS_SPACES), max_words)


def clean_question_blip(text: str, max_words: int) -> str:
    """Lower-case, without the punctuation that is a space in captions; spaces stay."""
    return _first_words(text.lower().translate(_AS_NOTHING).rstrip(" "), max_words)


def stripped(text: str, max_words: int) -> str:
    """The first `max_words` words, as they are."""
    return _first_words(text.strip(), max_words)


class TextRules(NamedTuple):
    """What an official code makes of texts; `clean_*` take a text and the most words to keep."""

    clean_caption: Callable[[str, int], str]
    clean_question: Callable[[str, int], str]
    added: tuple[str, ...]  # special tokens behind BERT's vocabulary, see `WordPiece`
    closed: bool  # whether a text ends with [SEP]


TEXT_RULES = {
    "albef": TextRules(clean_caption, clean_question, (), False),
    "blip": TextRules(clean_caption_blip, clean_question_blip, ("[DEC]", "[ENC]"), True),
    "alpro": TextRules(stripped, stripped, (), True),
}


def text_rules(name: str) -> TextRules:
    """Return the rules of that name; ValueError if there are none."""
    if name not in TEXT_RULES:
        raise ValueError(f"text_rules={name!r}: known are {', '.join(TEXT_RULES)}")
    return TEXT_RULES[name]


def _spaced(text: str, max_words: int) -> str:
    return _first_words(re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" "), max_words)


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split(" ")[:count])
