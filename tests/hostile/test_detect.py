"""tenfold-detect label on inputs that are damaged or that a stranger made: counted or refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from methods.pb_ovd.detect import cli
from methods.pb_ovd.mentions import LONGEST_NAME, MOST_NAMES, read_object_names
from methods.pb_ovd.texts import embedder
from shared.data.errors import DataCorruptError
from shared.predict.inputs import PredictError
from tests.unit import detect_toy as toy

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def scenes(tmp_path: Path) -> dict[str, Path]:
    return toy.write_scenes(tmp_path / "scenes", 3)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command that may not open a connection; a failure is one line."""
    monkeypatch.setattr(
        "shared.tools.command.git_state", lambda: {"git_commit": None, "git_dirty": False}
    )
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it opens a connection"))

    def command(*words: Any) -> tuple[int, str]:
        status = cli.main([str(word) for word in words])
        said, error = capsys.readouterr()
        assert not status or error.count("\n") == 1
        return status, said + error

    return command


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected a JSON object"),
        ({}, "expected a JSON object"),
        ({"tv": "television"}, "expected a list of texts"),
        ({"tv": []}, "expected a list of texts"),
        ({"tv": ["tv", 3]}, "3 is no text of a word"),
        ({"tv": ["tv", "..."]}, "is no text of a word"),
        ({" ": ["tv"]}, "is no text of a word"),
        ({"tv": ["t" * (LONGEST_NAME + 1)]}, "is no text of a word"),
        ({"tv": ["\ud800"]}, "is no text of a word"),
        ({"tv": ["tv"] * (MOST_NAMES + 1)}, f"more than {MOST_NAMES}"),
    ],
)
def test_vocabularies_that_are_none_are_refused(tmp_path, content, said):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataCorruptError, match=re.escape(said)) as refusal:
        read_object_names(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_two_thousand_names_are_fine(scenes, run, tmp_path):
    names = {f"thing {number}": [f"thing {number}"] for number in range(2000)}
    scenes["vocabulary"].write_text(json.dumps(names | toy.VOCABULARY))
    status, said = run("label", *toy.options(scenes, tmp_path / "out"))
    assert status == 0, said


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "images/link.png"])
def test_images_outside_of_their_root_are_not_read(scenes, run, tmp_path, name):
    secret = tmp_path / "secret.png"
    secret.write_bytes((scenes["pairs"].parent / "images/000.png").read_bytes())
    (scenes["pairs"].parent / "images/link.png").symlink_to(secret)
    entries = [*json.loads(scenes["pairs"].read_text()), {"image": name, "caption": "banana"}]
    scenes["pairs"].write_text(json.dumps(entries))
    out = tmp_path / "out"
    status, said = run("label", *toy.options(scenes, out), "--max-bad", 0.5)
    assert status == 0, said
    assert "outside" in (out / "unusable.jsonl").read_text()
    assert len(json.loads((out / "labels.json").read_text())["images"]) == 3


def test_names_that_would_forge_the_card_are_shown_as_they_are(scenes, run, tmp_path):
    evil = "banana\x1b[2J</b><img src=x>"
    scenes["vocabulary"].write_text(json.dumps({evil: ["banana"]}))
    status, said = run("label", *toy.options(scenes, tmp_path / "out"))
    assert status == 0, said
    assert "\x1b" not in said + (tmp_path / "out/card.md").read_text()
    assert "<img" not in (tmp_path / "out/card.md").read_text().replace("\\<img", "")


def test_a_damaged_image_is_counted_and_a_damaged_journal_worked_out_again(scenes, run, tmp_path):
    (scenes["pairs"].parent / "images/001.png").write_bytes(b"noise")
    out = tmp_path / "out"
    status, said = run("label", *toy.options(scenes, out), "--max-bad", 0.5)
    assert status == 0, said
    assert "unreadable" in (out / "unusable.jsonl").read_text()
    before = toy.outputs(out)
    journal = out / "work/shard-00000-of-00001.journal"
    journal.write_bytes(journal.read_bytes()[:-40].replace(b"banana", b"orange"))
    for name in before:
        (out / name).unlink()
    status, said = run("label", *toy.options(scenes, out), "--max-bad", 0.5)
    assert (status, "bytes were cut" in said) == (0, True), said
    assert toy.outputs(out) == before


def test_proposals_that_leave_their_root_are_refused(scenes, run, tmp_path):
    boxes = json.loads(scenes["proposals"].read_text())
    boxes["images"][0]["file_name"] = "../../etc/passwd"
    scenes["proposals"].write_text(json.dumps(boxes))
    status, said = run("label", *toy.options(scenes, tmp_path / "out"))
    assert (status, "is outside of the image root" in said) == (1, True), said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "expected a JSON object from names to lists of numbers"),
        ("{}", "expected a JSON object from names to lists of numbers"),
        ('{"cup": [1, 2]}', "not all embeddings have the detector's 6 numbers"),
        ('{"cup": "123456"}', "cup: embedding is '123456', expected numbers"),
        ('{"cup": [1, 2, 3, 4, 5, 1e999]}', "expected numbers"),
        ('{"cup": [1, 2, 3, 4, 5, NaN]}', "expected numbers"),
        ("[" * 100_000, "nested too deep"),
        ("noise", "names.json"),
    ],
)
def test_embedded_names_that_are_none_are_refused(tmp_path, content, said):
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises((DataCorruptError, PredictError), match=re.escape(said)) as refusal:
        embedder(str(path), {}, 6)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
