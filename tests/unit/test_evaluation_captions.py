"""Metrics of captions: recorded values of pycocoevalcap, values by hand, what is missing."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.evaluation import captions as module
from shared.evaluation.captions import (
    bleu,
    caption_scores,
    cider,
    plain_words,
    rouge_l,
)

FIXTURE = Path(__file__).parents[1] / "fixtures/captions/pycocoevalcap.json"


def numbered(content: dict[str, Any]) -> dict[int, Any]:
    return {int(number): value for number, value in content.items()}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    content = json.loads(FIXTURE.read_text())
    content["words"] = {name: numbered(texts) for name, texts in content["words"].items()}
    return content | {name: numbered(content[name]) for name in ("captions", "references")}


@pytest.fixture
def java() -> None:
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("no Java runtime")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_recorded_values_on_recorded_words(recorded: dict[str, Any]) -> None:
    words = recorded["words"]["captions"], recorded["words"]["references"]
    found = {**bleu(*words), "rouge_l": rouge_l(*words), "cider": cider(*words)}
    for name, value in found.items():
        assert value == pytest.approx(recorded["metrics"][name], rel=1e-12), name


@pytest.mark.java
def test_all_of_it_with_java(recorded: dict[str, Any], java: None) -> None:
    found = caption_scores(recorded["captions"], recorded["references"])
    assert found.tokenizer == "ptb"
    assert not found.missing.keys() - {"spice"}
    for name, value in recorded["metrics"].items():
        assert found.metrics[name] == pytest.approx(100 * value, rel=1e-12), name


@pytest.mark.java
def test_what_ends_a_line_shifts_no_text(recorded: dict[str, Any], java: None) -> None:
    texts = {1: [""], 2: ["a\r\ndog\x85", "\u2028"], 3: ["The Cat's.", ""], 4: [""]}
    assert module._ptb_words(texts) == {1: [""], 2: ["a dog", ""], 3: ["the cat 's", ""], 4: [""]}


WORD_ROWS = st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(WORD_ROWS, st.lists(WORD_ROWS, min_size=1, max_size=4)), min_size=1))
def test_any_words_are_scored_as_by_the_package(rows: list[tuple[str, list[str]]]) -> None:
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates = {number: [text] for number, (text, _) in enumerate(rows)}
    references = {number: texts for number, (_, texts) in enumerate(rows)}
    assume(any(text for texts in references.values() for text in texts))
    values = Bleu().compute_score(references, candidates, verbose=0)[0]
    assert list(bleu(candidates, references).values()) == pytest.approx(values, rel=1e-9)
    for ours, theirs in ((rouge_l, Rouge()), (cider, Cider())):
        value = theirs.compute_score(references, candidates)[0]
        assert ours(candidates, references) == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_values_by_hand() -> None:
    # Of one word each: cosine 1 of single words, nothing of longer ones; ten times a quarter.
    one = {1: ["dog"], 2: ["cat"]}
    assert cider(one, one) == pytest.approx(2.5)
    assert cider({1: ["cat"], 2: ["dog"]}, one) == 0
    assert cider({1: ["dog"]}, {1: ["dog"]}) == 0, "no word is rare"
    # "a b c d" for "a b x d e": 3 of 4 words, 1 of 3 pairs; one word too short.
    found = bleu({1: ["a b c d"]}, {1: ["a b x d e"]})
    penalty = 0.7788007830714049  # exp(1 - 5/4)
    assert found["bleu_1"] == pytest.approx(penalty * 3 / 4)
    assert found["bleu_2"] == pytest.approx(penalty * (3 / 4 * 1 / 3) ** 0.5)
    assert found["bleu_3"] < 1e-4
    # Precision 3/4, recall 3/5.
    expected = (1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)
    assert rouge_l({1: ["a b c d"]}, {1: ["a b x d e"]}) == pytest.approx(expected)
    # The nearer of two lengths counts, the shorter one of equally near ones.
    assert bleu({1: ["a b c"]}, {1: ["a b c d", "a b"]})["bleu_1"] == pytest.approx(1)


def test_plain_words() -> None:
    text = "A man's T-shirt -- it's RED, isn't it? (2)"
    assert plain_words({3: [text, ""]}) == {
        3: ["a man 's t-shirt it 's red isn 't it 2", ""],
    }


def test_what_is_missing_is_named_and_the_rest_reported(
    recorded: dict[str, Any], nothing_installed: None
) -> None:
    found = caption_scores(recorded["captions"], recorded["references"])
    plain = caption_scores(recorded["captions"], recorded["references"], tokenizer="plain")
    assert found.metrics == plain.metrics
    assert (found.tokenizer, plain.tokenizer, plain.missing) == ("plain", "plain", {})
    assert set(found.missing) == {"PTB tokeniser", "meteor", "spice"}
    for need in found.missing.values():
        assert "pip install 'tenfold[captions]' and a Java runtime" in need
    assert set(plain.metrics) == {*(f"bleu_{n}" for n in range(1, 5)), "rouge_l", "cider"}


def fake_package(folder: Path, monkeypatch: pytest.MonkeyPatch, **classes: type) -> None:
    """A package of that name with a tokeniser, METEOR and SPICE of one's own."""
    (folder / "spice" / "lib").mkdir(parents=True)
    parts = {"ptbtokenizer": "tokenizer.ptbtokenizer", "meteor": "meteor.meteor"}
    parts["spice"] = "spice.spice"
    package = ModuleType("pycocoevalcap")
    package.__path__ = [str(folder)]
    package.__spec__ = type("Spec", (), {"submodule_search_locations": [str(folder)]})()
    monkeypatch.setitem(sys.modules, "pycocoevalcap", package)
    monkeypatch.setattr(shutil, "which", lambda name: "java")
    for name, path in parts.items():
        below = path.split(".")[0]
        monkeypatch.setitem(sys.modules, f"pycocoevalcap.{below}", ModuleType(below))
        inner = ModuleType(name)
        inner.__dict__.update(classes)
        monkeypatch.setitem(sys.modules, f"pycocoevalcap.{path}", inner)


class Words:
    def tokenize(self, texts: dict[int, list[dict[str, str]]]) -> dict[int, list[str]]:
        return {n: [row["caption"].upper() for row in rows] for n, rows in texts.items()}


class Broken:
    def tokenize(self, texts: Any) -> Any:
        raise PermissionError("read-only")

    def compute_score(self, references: Any, candidates: Any) -> Any:
        raise ValueError("could not convert string to float: ''")


class Short:
    def tokenize(self, texts: dict[int, list[dict[str, str]]]) -> dict[int, list[str]]:
        return {number: [] for number in texts}


class Half:
    def compute_score(self, references: Any, candidates: Any) -> Any:
        assert references.keys() == candidates.keys()
        return 0.5, []


def test_java_metrics_and_their_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions, references = {1: "dog", 2: "cat"}, {1: ["dog"], 2: ["cat", "dog"]}
    fake_package(tmp_path, monkeypatch, PTBTokenizer=Words, Meteor=Half, Spice=Half)
    found = caption_scores(captions, references)
    assert found.tokenizer == "ptb"
    assert found.metrics["meteor"] == 50
    assert "spice" not in found.metrics
    assert "models.jar in" in found.missing["spice"], "SPICE would fetch these by itself"
    for jar in module.CORENLP:
        (tmp_path / "spice" / "lib" / jar).touch()
    found = caption_scores(captions, references, {1: "in-domain", 2: "Out Domain"})
    assert (found.metrics["spice"], found.missing) == (50, {})
    assert found.metrics["spice_in_domain"] == found.metrics["meteor_out_domain"] == 50
    inner = sys.modules["pycocoevalcap.meteor.meteor"]
    monkeypatch.setattr(inner, "Meteor", Broken)
    found = caption_scores(captions, references)
    assert found.missing == {
        "meteor": "it failed (ValueError: could not convert string to float: '')"
    }
    for broken, told in ((Broken, "PermissionError: read-only"), (Short, "lost texts of image 1")):
        monkeypatch.setattr(
            sys.modules["pycocoevalcap.tokenizer.ptbtokenizer"], "PTBTokenizer", broken
        )
        found = caption_scores(captions, references)
        assert found.tokenizer == "plain"
        assert set(found.missing) == {"PTB tokeniser", "meteor", "spice"}
        assert told in found.missing["meteor"]


def test_domains_are_sets_of_their_own() -> None:
    captions = {1: "a dog", 2: "a cat", 3: "a bird", 4: "a fish"}
    references = {n: [text] for n, text in captions.items()} | {4: ["a fish", "the whale"]}
    domains = {1: "in-domain", 2: "in-domain", 3: "out-domain", 4: "out-domain"}
    found = caption_scores(captions, references, domains, "plain").metrics
    for name, own in (("in_domain", (1, 2)), ("out_domain", (3, 4))):
        alone = caption_scores(
            {n: captions[n] for n in own}, {n: references[n] for n in own}, tokenizer="plain"
        )
        assert {f"{k}_{name}": v for k, v in alone.metrics.items()}.items() <= found.items()
    whole = caption_scores(captions, references, tokenizer="plain").metrics
    assert whole.items() <= found.items()


def test_ids_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 images .*without a caption, the first is 2"):
        caption_scores({1: "a"}, {1: ["a"], 2: ["b"]})
    with pytest.raises(ValueError, match="captioned images have no references: 7"):
        caption_scores({1: "a", 7: "b"}, {1: ["a"]})
    with pytest.raises(ValueError, match="image 1 has no reference"):
        caption_scores({1: "a"}, {1: []})
    with pytest.raises(ValueError, match="image 1 has no domain"):
        caption_scores({1: "a"}, {1: ["a"]}, {2: "in-domain"})
    with pytest.raises(ValueError, match="no image with references"):
        caption_scores({}, {})
