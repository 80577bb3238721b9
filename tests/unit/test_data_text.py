"""Cleaning rules: what holds for any text (the official examples are golden vectors)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data.text.cleaning import TEXT_RULES, clean_caption, clean_question, text_rules

REMOVED = set(",.'!?\"()*#:;~-/")


def test_captions_differ_from_questions() -> None:
    assert clean_caption("a " * 40) == " ".join(["a"] * 30)
    assert clean_caption("<PERSON>s dog") == "persons dog"
    assert clean_question("<PERSON>s dog", 30) == "<person>s dog"
    assert clean_question("a  b c", 3) == "a  b"
    assert clean_caption("a  b c", 3) == "a b c"


@settings(max_examples=30)
@given(st.text("aZ é<person>\n\t \u3000,.-/!~"), st.integers(1, 10))
def test_any_text(text: str, max_words: int) -> None:
    caption, question = clean_caption(text, max_words), clean_question(text, max_words)
    for cleaned in (caption, question):
        assert not REMOVED & set(cleaned)
        assert len(cleaned.split(" ")) <= max_words
    assert "  " not in caption
    assert caption == caption.strip(" ").removesuffix("\n")
    assert caption == clean_caption(caption, max_words) or "<" in text


def test_blip_keeps_some_signs() -> None:
    rules = TEXT_RULES["blip"]
    caption = "  A man (left) -- it's #1; on top/of a surf-board, isn't it?\n"
    assert rules.clean_caption(caption, 30) == (
        "a man left -- it's 1 on top/of a surf-board, isn't it?"
    )
    assert rules.clean_caption("one  two three", 2) == "one two"
    assert rules.clean_caption("A\tlong", 30) == "a\tlong", "a single tab survives"
    assert rules.clean_caption("...", 30) == ""
    assert rules.clean_question("  How many: 1, 2 or 3?! ", 50) == "  how many 1, 2 or 3?"
    assert rules.clean_question("a  b c", 3) == "a  b"


def test_rules_by_name() -> None:
    assert text_rules("blip").added == ("[DEC]", "[ENC]")
    assert not text_rules("albef").closed
    with pytest.raises(ValueError, match="text_rules='clip': known are albef, blip"):
        text_rules("clip")
