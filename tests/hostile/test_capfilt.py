"""CapFilt on inputs that are damaged or that a stranger made: counted and named, or refused."""

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.blip.capfilt import cli
from shared.data.captioned.records import LONGEST_ENTRY
from shared.data.readers.json_lists import MalformedError, list_items
from tests.hostile import tripwire
from tests.hostile.damages import DAMAGES, MOSTLY
from tests.unit import capfilt_toy as toy

PRECIOUS = b"nobody may change this\n"
GOOD = 30
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """A watched command with the stand-ins; a failure is one line."""
    monkeypatch.setattr(cli, "load_models", toy.toy_models)
    monkeypatch.setattr(
        "shared.tools.command.git_state", lambda: {"git_commit": None, "git_dirty": False}
    )
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it opens a connection"))
    monkeypatch.chdir(tmp_path)  # SQLite says that its nameless file lies here

    def command(given: Path, out: Path, *options: Any) -> tuple[int, str]:
        words = ["run", given, "--out", out, "--captioner", "c", "--filter", "f", "--workers", 0]
        with tripwire.watched(tmp_path.resolve()) as watch:
            status = cli.main([str(word) for word in [*words, "--batch-size", 8, *options]])
        assert (watch.processes, {*watch.outside} - {"/dev/zero"}) == ([], set())
        said, error = capsys.readouterr()
        if status:
            assert status == 1
            assert error.startswith("tenfold-capfilt: ")
            assert error.count("\n") == 1
        return status, said + error

    return command


def bomb(side: int = 50_000) -> bytes:
    """A PNG that says to have so many pixels a side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def captions_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]


def kinds_of_faults(out: Path) -> dict[str, str]:
    """Name of each unusable entry, without its shard, and kind of its fault."""
    bad = [line for line in captions_of(out) if "fault" in line]
    return {line["image"].removeprefix("0.tar/"): line["fault"].partition(":")[0] for line in bad}


def bad_entries(root: Path) -> list[tuple[Any, str]]:
    """JSON texts of entries, each with how its fault begins; files are made below `root`."""
    files = {
        "cut.jpg": toy.image(1)[:300],
        "noise.png": bytes(range(256)),
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "bomb.png": bomb(),
        "large.png": bomb(9_000),
        "empty.jpg": b"",
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    os.mkfifo(root / "pipe.jpg")
    (root / "folder.jpg").mkdir()
    (root / "outside.jpg").symlink_to(root.parent / "secret.jpg")
    (root.parent / "secret.jpg").write_bytes(toy.image(2))
    (root / "loop.jpg").symlink_to("loop.jpg")

    def entry(image: Any, caption: Any = "a cat", **more: Any) -> str:
        return json.dumps({"image": image, "caption": caption, **more})

    return [
        (entry("gone.jpg"), "no file"),
        (entry("cut.jpg"), "unreadable"),
        (entry("noise.png"), "unreadable"),
        (entry("script.png"), "unreadable"),
        (entry("empty.jpg"), "unreadable"),
        (entry("bomb.png"), "too large"),
        (entry("large.png"), "too large: 9000 x 9000 pixels"),
        (entry("pipe.jpg"), "unreadable: is a pipe"),
        (entry("folder.jpg"), "unreadable: is a pipe, a device, a socket or a folder"),
        (entry("loop.jpg"), "unreadable"),
        (entry("outside.jpg"), "outside"),
        (entry("../secret.jpg"), "outside"),
        (entry("images/../../secret.jpg"), "outside"),
        (entry("/etc/passwd"), "outside"),
        (entry("a\0.jpg"), "not UTF-8: its path"),
        (entry("\ud800.jpg"), "not UTF-8: its path"),
        (entry(3), "no image named: 3"),
        (entry("images/00000.jpg", "half \udc80"), "not UTF-8: its text"),
        (entry("images/00000.jpg", " ...\t"), "no word"),
        (entry("images/00000.jpg", None), "no text"),
        (entry("images/00000.jpg", ["a"] * 101), "too long: 101 texts"),
        (entry("images/00000.jpg", "x" * 10_001), "too long: a text of 10001"),
        (entry("images/00000.jpg", url="\udc80"), "not UTF-8: one of its values"),
        (entry("images/00000.jpg", size=float("nan")), "no JSON: NaN"),
        (
            '{"image": "images/00000.jpg", "caption": "a", "n": %s}' % ("9" * 5000),
            "no JSON: NaN, or",
        ),
        (entry("images/00000.jpg", deep=eval("[" * 60 + "]" * 60)), "no JSON: nested too deep"),
        ("42", "no object: 42"),
        ("null", "no object: None"),
    ]


@pytest.mark.parametrize("kind", ["list", "lines"])
def test_bad_entries_are_counted_and_named_and_nothing_else_is_lost(run, tmp_path, kind):
    path = toy.write_json(tmp_path / "in", GOOD, lines=True)
    good = path.read_text().splitlines()
    bad = bad_entries(path.parent)
    texts = [text for pair in zip(good, (text for text, _ in bad), strict=False) for text in pair]
    texts += good[len(bad) :]
    told = [fault for _, fault in bad]
    if kind == "lines":
        more = {
            '{"image": "x': "no JSON",
            "x" * (LONGEST_ENTRY + 5): "too long",
            "[" * 99999: "no JSON",
        }
        texts += more
        told += more.values()
        path.write_bytes(
            "\n".join(texts).encode() + b'\n{"image": "images/00001.jpg", "caption": "\xff\xfe"}'
        )
        told.append("not UTF-8: its text")
    else:
        path = path.with_suffix(".json")
        path.write_text("[" + ",".join(texts) + "]")
    status, said = run(path, tmp_path / "out", "--max-bad", 0.9)
    assert status == 0, said
    captions = captions_of(tmp_path / "out")
    found = [line["fault"] for line in captions if "fault" in line]
    assert len(found) == len(told)
    assert [fault[: len(start)] for fault, start in zip(found, told, strict=True)] == told
    web = [line["caption"] for line in captions if line.get("origin") == "web"]
    assert web == [toy.caption(number) for number in range(GOOD)]
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["unusable"]["entries"] == len(told)
    assert "gone.jpg (no file)" in card["unusable"]["kinds"]["no file"]["examples"]
    assert "unusable: gone.jpg (no file)" in said
    assert f"unusable: {len(told) - 10} more" in said


def test_too_many_bad_entries_end_the_work_and_a_higher_share_goes_on(run, tmp_path):
    path = toy.write_json(tmp_path / "in", 40)
    for number in range(3, 9):
        (path.parent / f"images/{number:05}.jpg").unlink()
    status, said = run(path, tmp_path / "out", "--max-bad", 0.1)
    assert status == 1
    assert "6 of 40 entries are unusable, more than --max-bad 0.1" in said
    assert "the first is images/00003.jpg (no file)" in said
    assert not (tmp_path / "out/card.json").exists()
    status, said = run(path, tmp_path / "out", "--max-bad", 0.2)
    assert (status, "0 of them in this run" in said) == (0, True)
    assert len(kinds_of_faults(tmp_path / "out")) == 6


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[:-20], "the last 1."),
        (lambda text: text[: len(text) // 2], "the last 0.4% of the file"),
        (lambda text: text.replace('"caption"', "caption", 1), None),
        (lambda text: text.replace("}, {", "} {", 1), "no comma between entries"),
        (lambda text: text + "x", "something follows the list"),
        (lambda text: "{" + text, None),
        (lambda text: '["' + "x" * (2 * LONGEST_ENTRY), None),
    ],
)
def test_a_damaged_list_is_an_error_unless_little_is_lost(run, tmp_path, change, told):
    path = toy.write_json(tmp_path / "in", 20)
    path.write_text(change(path.read_text()))
    status, said = run(path, tmp_path / "out", "--max-bad", 0.06)
    little = told in ("the last 1.", "something follows the list")
    assert status == (0 if little else 1)
    assert "no JSON" in said or "is no list of entries" in said
    assert (tmp_path / "out/card.json").exists() == little


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(VALUES, max_size=5), st.sampled_from([1, 2, 7, 64]), st.data())
def test_a_list_is_read_alike_by_pieces_of_any_size(values, size, data):
    text = json.dumps(values, ensure_ascii=False, indent=data.draw(st.sampled_from([None, 1])))
    content, decoder = text.encode("utf-8", "surrogatepass"), json.JSONDecoder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.data.readers.json_lists._PIECE", size)
        assert [value for value, _ in list_items(io.BytesIO(content), decoder)] == values
        cut = data.draw(st.integers(0, len(content) - 1))
        with pytest.raises(MalformedError):
            list(list_items(io.BytesIO(content[:cut]), decoder))


def test_shards_of_strangers(run, tmp_path):
    def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        return info

    picture, text = toy.image(1, "PNG"), b"a cat"
    shard = toy.write_shards(tmp_path / "in", [12]) / "0.tar"
    with tarfile.open(shard, "a") as archive:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        for key in ("../up", "/absolute", "a/../inside", "a/../../out"):
            add(f"{key}.png", picture)
            add(f"{key}.txt", text)
        archive.addfile(special("link.png", tarfile.SYMTYPE, "/etc/passwd"))
        archive.addfile(special("hard.png", tarfile.LNKTYPE, "000000.png"))
        archive.addfile(special("device.png", tarfile.CHRTYPE))
        for name, content in {
            "two.png": picture, "two.jpg": picture, "two.txt": text, "alone.txt": text,
            "same.png": picture, "latin.png": picture, "latin.txt": b"caf\xe9", "none.png": picture,
            "bomb.png": bomb(), "bomb.txt": text, "json.png": picture, "json.json": b"[3]",
        }.items():  # fmt: skip
            add(name, content)
    status, said = run(tmp_path / "in", tmp_path / "out", "--max-bad", 0.9)
    assert status == 0, said
    kinds = kinds_of_faults(tmp_path / "out")
    assert kinds == {
        "../up": "outside", "absolute": "outside", "a/../inside": "outside",
        "a/../../out": "outside", "link": "outside", "hard": "outside", "device": "outside",
        "two": "twice", "alone": "no file", "same": "no text", "latin": "not UTF-8",
        "none": "no text", "bomb": "too large", "json": "no text",
    }  # fmt: skip
    with tarfile.open(tmp_path / "out/pairs/0.tar") as archive:
        assert all(member.isreg() and ".." not in member.name for member in archive)


def test_damaged_shards_are_an_error_unless_little_is_lost(run, tmp_path):
    shard = toy.write_shards(tmp_path / "in", [30]) / "0.tar"
    whole = shard.read_bytes()
    head = bytearray(whole)
    head[512 * 20] ^= 255  # within the archive
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "header": head,
        "packed": b"\x1f\x8b" + whole,
    }.items():
        shard.write_bytes(content)
        status, said = run(shard, tmp_path / name)
        assert (status, "damaged shard" in said or name == "header") == (1, True), said
    shard.write_bytes(whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512])
    status, said = run(shard, tmp_path / "tail", "--max-bad", 0.5)
    assert status == 0
    assert "no mark of an archive's end" in said


def test_folders_of_strangers(run, tmp_path):
    root = toy.write_folder(tmp_path / "in", 10)
    (tmp_path / "secret.txt").write_text("secret")
    (root / "linked").symlink_to(tmp_path)
    for stem in ("latin", "link", "empty", "pipe", "none", "twice"):
        (root / f"{stem}.jpg").write_bytes(toy.image(5))
    (root / "twice.png").write_bytes(toy.image(5))
    (root / "twice.txt").write_text("two")
    (root / "latin.txt").write_bytes(b"caf\xe9")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "empty.txt").touch()
    os.mkfifo(root / "pipe.txt")
    (root / os.fsdecode(b"caf\xe9.jpg")).write_bytes(toy.image(5))
    status, said = run(root, tmp_path / "out", "--max-bad", 0.9)
    assert status == 0, said
    kinds = kinds_of_faults(tmp_path / "out")
    assert kinds == {
        "caf\udce9.jpg": "not UTF-8", "empty.jpg": "no word", "latin.jpg": "not UTF-8",
        "link.jpg": "outside", "none.jpg": "no text", "pipe.jpg": "unreadable",
        "twice.png": "twice",
    }  # fmt: skip
    assert b"secret" not in b"".join(toy.outputs(tmp_path / "out").values())


@pytest.mark.parametrize("damage", MOSTLY)
@pytest.mark.parametrize("kind", ["list", "lines", "shard", "image"])
def test_whatever_lies_in_place_of_a_file(run, tmp_path, damage, kind):
    if kind == "shard":
        given = victim = toy.write_shards(tmp_path / "in", [9]) / "0.tar"
    else:
        given = victim = toy.write_json(tmp_path / "in", 9, lines=kind == "lines")
        victim = victim.parent / "images/00003.jpg" if kind == "image" else victim
    DAMAGES[damage](victim)
    status, said = run(given, tmp_path / "out", "--max-bad", 0.2)
    assert status == (0 if kind == "image" else status), said


SIGNS = "<script>alert(1)</script><img src=http://example.org/x onerror=alert(1)>"
HOSTILE = f"{SIGNS} \"' {{{{ 7*7 }}}} &amp; ]]> --> \u202e\x1b[31m [a](http://example.org)"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_texts_are_shown_as_texts(run, tmp_path):
    path = toy.write_json(tmp_path / "in", 3)
    entries = json.loads(path.read_text())
    for entry in entries:
        entry["caption"] = HOSTILE
    entries.append({"image": HOSTILE.replace("/", "|"), "caption": "a"})
    path.write_text(json.dumps(entries))
    options = ["--max-bad", 0.5, "--licence", HOSTILE, "--threshold", 0]
    status, said = run(path, tmp_path / "out", *options)
    assert status == 0
    assert "\x1b[31m" not in said
    content = (tmp_path / "out/sheet.html").read_text()
    page = Page(content)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "a", "iframe", "object", "i", "b "})
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3
    assert all(
        p["src"].startswith("data:image/jpeg;base64,") and "onerror" not in p for p in pictures
    )
    shown = content.replace("http://example.org", "").replace("http:||example.org", "")
    assert "http" not in shown.replace("http-equiv", "")
    assert SIGNS in page.text
    assert "{{ 7*7 }}" in page.text
    assert "\u202e" not in content
    assert "default-src 'none'" in content
    card = (tmp_path / "out/card.md").read_text()
    outside_code = "".join(card.split("`")[::2])
    assert "<script" not in outside_code.replace("\\<script", "")
    assert "\x1b" not in card
    pairs = json.loads((tmp_path / "out/pairs.json").read_text())
    assert pairs[0]["caption"] == HOSTILE


def test_no_link_in_the_output_is_written_through(run, tmp_path):
    path, out = toy.write_json(tmp_path / "in", 5), tmp_path / "out"
    precious = tmp_path / "precious"
    precious.write_bytes(PRECIOUS)
    (out / "work").mkdir(parents=True)
    for name in ("pairs.json", "captions.jsonl", "sheet.html", "card.md", "card.json"):
        (out / name).symlink_to(precious)
    journal = out / "work/shard-00000-of-00001.journal"
    journal.symlink_to(precious)
    status, said = run(path, out)
    assert (status, "is a link" in said) == (1, True)
    journal.unlink()
    (out / "card.md").unlink()
    (out / "sheet.html").unlink()
    assert run(path, out)[0] == 0
    assert precious.read_bytes() == PRECIOUS
    (tmp_path / "other").symlink_to(out)
    status, said = run(path, tmp_path / "other")
    assert (status, "is a link" in said) == (1, True)
