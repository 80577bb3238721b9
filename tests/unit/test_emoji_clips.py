"""Clips of drawings: what moves where, what is said and asked of it, and the files."""

import json
from pathlib import Path

import numpy as np
import pytest
from emoji_toy import made_up

from benchmarks.miniatures.emoji import clips as module
from benchmarks.miniatures.emoji.clips import (
    FRAMES,
    PATH,
    SIZE,
    Clip,
    backwards,
    clips,
    full_caption,
    make_clips,
    questions,
    still_caption,
    web_caption,
)
from benchmarks.miniatures.emoji.packages import PHOTOGRAPHS, grounds, of_split
from benchmarks.miniatures.emoji.scenes import Studio, scene_concepts
from shared.checkpoints.pretrained_text import hugging_face_state
from shared.checkpoints.reading import load_checkpoint
from shared.data.image_text.annotations import read_annotations
from shared.data.image_text.clips import read_numbered_answers
from shared.data.readers.videos import read_frames

pytest.importorskip("av")


def toy() -> Studio:
    """Squares of one colour each on photographs of one grey each."""
    drawn = made_up()
    drawn.concepts[9].aliases = ["other name"]
    for rendering in drawn.pictures.values():
        rendering[...] = 0
        rendering[:, 10:60, 10:60] = 255
    grey = {p.id: np.full((80, 90, 3), 10 * i, np.uint8) for i, p in enumerate(PHOTOGRAPHS)}
    return Studio(drawn, grey)


STUDIO = toy()
CONCEPTS = scene_concepts(STUDIO.drawn, 0, 6)
TABLE = STUDIO.drawn.concepts


def made(kind: str, count: int) -> list[Clip]:
    return make_clips(STUDIO, kind, count, CONCEPTS, seed=3)


def test_a_clip_depends_on_its_number_alone() -> None:
    assert made("web", 5) == made("web", 3) + made("web", 5)[3:]
    assert made("web", 3) != made("tune", 3)


@pytest.mark.parametrize("kind", ["web", "val", "test"])
def test_artists_and_photographs_of_the_split(kind: str) -> None:
    split = "train" if kind == "web" else kind
    for clip in made(kind, 20):
        assert clip.ground in grounds(split)
        assert {mover.rendering for mover in clip.movers} <= set(of_split(split))


def test_movers_keep_their_lanes_and_go_their_ways() -> None:
    found = made("web", 300)
    assert 0.06 < np.mean([len(clip.movers) == 1 for clip in found]) < 0.2
    for clip in found:
        for mover in clip.movers:
            corners = np.array(mover.corners)
            assert max(mover.extent) == mover.longest
            middles = corners + np.array(mover.extent) / 2
            across = 1 if clip.places == ("top", "bottom") else 0
            assert (middles[:, across] < SIZE / 2).all() == (mover.place in ("top", "left"))
            moved = (corners[-1] - corners[0]).tolist()
            axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}.get(
                mover.way, (0, 0)
            )
            assert abs(moved[axis] - sign * PATH) <= 1
            assert abs(moved[1 - axis]) <= 1
            assert axis != across or mover.way == "nowhere"


def test_a_single_frame_hardly_tells_the_way() -> None:
    """A guess by the place in the first frame is right in less than three of four clips."""
    rows = [(m.way, m.corners[0][0] + m.longest / 2) for c in made("web", 400) for m in c.movers]
    ways = np.array([way for way, _ in rows if way in ("left", "right")])
    places = np.array([place for way, place in rows if way in ("left", "right")])
    guess = np.where(places > SIZE / 2, "left", "right")
    assert len(ways) > 120
    assert 0.5 < (guess == ways).mean() < 0.75


def test_frames_show_the_movers_where_they_are() -> None:
    for clip in made("test", 10):
        frames = clip.frames(STUDIO)
        assert frames.shape == (FRAMES, SIZE, SIZE, 3)
        for number in (0, FRAMES - 1):
            shown = np.argwhere(frames[number, ..., 0] == 255)
            corners = np.array([mover.corners[number] for mover in clip.movers])
            assert (shown.min(0) == np.maximum(corners.min(0)[::-1], 0)).all()


def test_what_is_said_and_asked() -> None:
    generator = np.random.default_rng(0)
    told: set[str] = set()
    for clip in made("web", 60):
        names = {mover.place: TABLE[mover.concept].label for mover in clip.movers}
        ways = {f"moving {m.way}" if m.way != "nowhere" else "standing still" for m in clip.movers}
        web, full = (f(clip, TABLE, generator) for f in (web_caption, full_caption))
        called = {name for m in clip.movers for name in (TABLE[m.concept].label, "other name")}
        assert web in called | {f"{name} {way}" for name in called for way in ways}
        assert still_caption(clip, TABLE, generator) in called
        told.add(web)
        assert all(name in full for name in names.values())
        assert full.count(" and ") == len(clip.movers) - 1
        what, how, where = questions(clip, TABLE, generator)
        place = what["question"].removeprefix("what is at the ").rstrip("?")
        assert what["answer"] == names.get(place, "nothing")
        assert how["answer"] in {
            m.way for m in clip.movers if TABLE[m.concept].label in how["question"]
        }
        assert names[where["answer"]] in where["question"]
    assert any("moving" in text for text in told)
    assert any(" " not in text for text in told)


def test_a_clip_backwards_has_the_same_frames_and_the_opposite_ways() -> None:
    opposite = {"left": "right", "up": "down", "nowhere": "nowhere"}
    opposite |= {there: back for back, there in opposite.items()}
    for clip in made("test", 20):
        turned = backwards(clip)
        assert (turned.frames(STUDIO) == clip.frames(STUDIO)[::-1]).all()
        assert [m.way for m in turned.movers] == [opposite[m.way] for m in clip.movers]
        assert turned.name != clip.name


def test_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "studio", lambda: STUDIO)
    counts = {"web": 4, "stills": 3, "tune": 4, "val": 2, "test": 2, "classes": 6}
    record = clips(tmp_path, seed=3, **counts)
    assert record["emoji-clips"]["licence"].endswith("together CC-BY-SA-4.0")
    twins = [
        read_annotations(tmp_path / f"msrvtt_ret/txt/motion_{split}.jsonl", {"hard": str})
        for split in ("val", "test")
    ]
    assert len(list((tmp_path / "videos").iterdir())) == 12 + sum(map(len, twins)) / 2
    rows = [row for split in twins for row in split]
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert (one["hard"], other["hard"]) == (other["caption"], one["caption"])
        assert one["hard"] != one["caption"]
        assert other["clip_name"] == one["clip_name"] + "r"
        first, second = (
            read_frames(tmp_path / f"videos/{row['clip_name']}.mp4", range) for row in (one, other)
        )
        assert np.abs(first.astype(int) - second[::-1]).mean() < 4
        assert np.abs(first.astype(int) - second).mean() > 4  # the codec's error is smaller
    (clip,) = make_clips(STUDIO, "test", 1, CONCEPTS, 3)
    shown = read_frames(tmp_path / "videos/test00000.mp4", range)
    assert np.abs(shown.astype(int) - clip.frames(STUDIO)).mean() < 4
    web = read_annotations(tmp_path / "webvid2m/train.csv", {"videoid": str, "name": str})
    assert [entry["videoid"] for entry in web] == [f"web{n:05}" for n in range(4)]
    stills = json.loads((tmp_path / "cc3m/cc3m.json").read_text())
    assert all((tmp_path / "cc3m" / item["image"]).is_file() for item in stills)
    answers = read_numbered_answers(tmp_path / "msrvtt_qa/txt/train_ans2label.json")
    asked = read_annotations(tmp_path / "msrvtt_qa/txt/train.jsonl")
    assert {entry["answer"] for entry in asked} == set(answers)
    vocabulary = (tmp_path / "vocab.txt").read_text().split()
    towers = hugging_face_state("zoo:text-emoji")["embeddings.word_embeddings.weight"]
    assert vocabulary[: len(towers)] == load_checkpoint("zoo:albef-emoji")["vocabulary"]
    assert len(set(vocabulary)) == len(vocabulary) > len(towers)
    entities = (tmp_path / "unigrams.txt").read_text().splitlines()
    assert {line.split()[0] for line in entities} <= set(vocabulary)
    counted = [int(line.split()[1]) for line in entities]
    assert counted == sorted(counted, reverse=True)
    assert {"video", ".", "portrait"} <= set(vocabulary)
