"""The list of entities: which words of captions are nouns, and the file of them."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from methods.alpro import entities
from methods.alpro.entities import main, noun_counts, nouns

# As the dictionary has them.
KINDS: dict[str, dict[str, Sequence[str]]] = {
    "dog": {"NOUN": ("dog",), "VERB": ("dog",)},
    "plays": {"NOUN": ("play",), "VERB": ("play",)},
    "red": {"ADJ": ("red",), "NOUN": ("red",)},
    "happy": {"ADJ": ("happy",)},
    "two": {"ADJ": ("two",), "NOUN": ("two",)},
    "apple": {"NOUN": ("apple",)},
    "people": {"NOUN": ("people",), "VERB": ("people",)},
    "is": {"AUX": ("be",), "VERB": ("be",)},
    "ball": {"NOUN": ("ball",), "VERB": ("ball",)},
}


@pytest.fixture
def _small_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(word: str) -> Mapping[str, Sequence[str]]:
        return KINDS.get(word, {})

    monkeypatch.setattr(entities, "parts_of_speech", kinds)


@pytest.mark.usefixtures("_small_dictionary")
@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("A dog plays with a red apple.", ["dog", "apple"]),
        ("the plays", ["plays"]),  # behind no noun it can be one
        ("apple is red", ["apple", "red"]),
        ("two happy people", ["people"]),
        ("Apple ball!", ["apple", "ball"]),  # a verb's base form behind a noun is a noun
        ("3 x", []),
        ("", []),
    ],
)
def test_nouns(caption: str, wanted: list[str]) -> None:
    assert nouns(caption) == wanted


@pytest.mark.usefixtures("_small_dictionary")
def test_the_most_frequent_ones_first() -> None:
    assert noun_counts(["dog", "apple", "ball dog"]) == [("dog", 2), ("apple", 1), ("ball", 1)]


@pytest.mark.usefixtures("_small_dictionary")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("videoid,name\n1,an apple\n2,the dog\n")
    listed = [{"caption": ["a dog", "people"]}, {"text": "dog"}, {"caption": 3}]
    (tmp_path / "b.json").write_text(json.dumps(listed))
    files = [str(tmp_path / name) for name in ("a.csv", "b.json")]
    out = ["--out", str(tmp_path / "unigrams.txt")]
    assert main([*files, *out, "--count", "2"]) == 0
    assert (tmp_path / "unigrams.txt").read_text() == "dog 3\napple 1\n"
    assert main([*files, *out]) == 0
    assert "have 3 nouns only" in capsys.readouterr().err
    assert main([str(tmp_path / "none.csv"), *out]) == 2
    assert "none.csv not found" in capsys.readouterr().err


def test_the_dictionary_itself() -> None:
    pytest.importorskip("lemminflect")
    found = nouns("Aerial view of two young women running with a dog along the beach at sunset")
    assert found == ["view", "women", "dog", "beach", "sunset"]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lemminflect", None)
    entities.parts_of_speech.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tenfold\[entities\]'"):
        nouns("dog")
