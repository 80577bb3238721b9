"""Cleaning rules: what holds for any text (the official examples are golden vectors)."""

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data.text.cleaning import clean_caption, clean_question

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
