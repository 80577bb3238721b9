"""Cleaning rules: the official examples, and what holds for any text."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shared.data.text.cleaning import clean_caption, clean_question

GOLDEN = Path(__file__).parents[1] / "golden" / "albef" / "text_cleaning" / "case.json"
EXAMPLES = json.loads(GOLDEN.read_text())["config"]
REMOVED = set(",.'!?\"()*#:;~-/")


def test_captions_have_30_words_by_default() -> None:
    assert clean_caption("a " * 40) == " ".join(["a"] * 30)


def test_person_is_a_word_of_captions_only() -> None:
    assert clean_caption("<PERSON>s dog") == "persons dog"
    assert clean_question("<PERSON>s dog", 30) == "<person>s dog"


def test_empty_words_of_a_question_count() -> None:
    assert clean_question("a  b c", 3) == "a  b"
    assert clean_caption("a  b c", 3) == "a b c"


@given(st.text(), st.integers(1, 10))
def test_any_caption(text: str, max_words: int) -> None:
    cleaned = clean_caption(text, max_words)
    assert not REMOVED & set(cleaned)
    assert len(cleaned.split(" ")) <= max_words
    assert "  " not in cleaned
    assert cleaned == cleaned.strip(" ").removesuffix("\n")
    assert cleaned == clean_caption(cleaned, max_words) or "<" in text


@given(st.text(), st.integers(1, 10))
def test_any_question(text: str, max_words: int) -> None:
    cleaned = clean_question(text, max_words)
    assert not REMOVED & set(cleaned)
    assert len(cleaned.split(" ")) <= max_words
