"""Cleaning rules of captions and questions.

Source: docs/papers/albef.md, section 6.1; salesforce/ALBEF@b9727e4 `dataset/utils.py`. They are
kept to the letter, oddities included: published vocabularies of answers and results depend on them.
"""

import re

_PUNCTUATION = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower-case, without punctuation, hyphen and slash as spaces, the first `max_words` words."""
    text = text.lower().translate(_PUNCTUATION).replace("<person>", "person")
    return _first_words(re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" "), max_words)


def clean_question(text: str, max_words: int) -> str:
    """As `clean_caption`, but runs of spaces stay, and each counts as empty words."""
    return _first_words(text.lower().translate(_PUNCTUATION).rstrip(" "), max_words)


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split(" ")[:count])
