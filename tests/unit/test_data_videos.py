"""Frames of videos, batches of clips, and what a model answers to them.

Frame n of the videos in tests/fixtures/videos is grey of luma 16 + 2 n, so that its pixels tell its
number: ffmpeg -f lavfi -i "color=black:s=48x32:r=25:d=4,geq=lum='16+2*N':cb=128:cr=128"
-frames:v 97 ramp.mp4 (and ramp.avi).
"""

import json
import os
import shutil
import struct
import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.clips import ClipPairs, ClipQuestions
from shared.data.image_text.pairs import EntryFrames, ImageTextData
from shared.data.image_text.videos import (
    FrameChoice,
    even_frames,
    head_tail_frames,
    random_frames,
    uniform_frames,
)
from shared.data.readers import videos
from shared.data.readers.videos import read_frames
from tests.unit.albef_toy import trainer
from tests.unit.blip_toy import build, lively
from tests.unit.demo_toy import VOCABULARY
from tests.unit.views_toy import plain_views

pytest.importorskip("av")
VIDEOS = Path(__file__).parents[1] / "fixtures/videos"
FRAMES = 97


def has_torchcodec() -> bool:
    try:
        return bool(videos.decoder("torchcodec"))
    except ModuleNotFoundError:
        return False


def grey(number: int) -> int:
    return 20 + number % 200


def written(path: Path, frames: int = 16, size: tuple[int, int] = (32, 48), **how: Any) -> Path:
    """A video whose n-th frame is grey of that level in its upper half, and black below."""
    av: Any = pytest.importorskip("av")
    codec, every = how.get("codec", "mpeg4"), how.get("times", range(frames))
    with av.open(path, "w", format=how.get("format", "mp4")) as video:
        if how.get("sound"):
            sound = video.add_stream("aac", 8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            video.mux(sound.encode(silence))
            video.mux(sound.encode())
            return path
        stream = video.add_stream(codec, 25, options=how.get("options", {}))
        (stream.height, stream.width), stream.pix_fmt = size, how.get("pixels", "yuv420p")
        for number, time in zip(range(frames), every, strict=True):
            pixels = np.zeros((*size, 3), np.uint8)
            pixels[: size[0] // 2] = grey(number)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    return path


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A copy of an MP4 file that says in its track's header to turn the picture."""
    content = path.read_bytes()
    place = content.index(b"tkhd") + 44
    a, b, c, d = matrix
    told = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    other = path.with_name(f"turned{a}{b}{c}{d}.mp4")
    other.write_bytes(content[:place] + told + content[place + len(told) :])
    return other


def levels(frames: np.ndarray) -> list[int]:
    """The brightest row's grey of each frame."""
    return np.rint(frames.mean(axis=(2, 3)).max(axis=1)).astype(int).tolist()


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames of a video these are."""
    return np.rint(frames.mean(axis=(1, 2, 3)) * 219 / 255 / 2).astype(int).tolist()


@pytest.mark.parametrize("name", ["ramp.mp4", "ramp.avi"])
def test_frames_by_number(name: str) -> None:
    frames = read_frames(VIDEOS / name, partial(uniform_frames, count=8))
    assert (frames.shape, frames.dtype) == ((8, 32, 48, 3), np.uint8)
    assert numbers(frames) == list(range(0, 96, 12))
    last = read_frames(VIDEOS / name, lambda count: [count - 1, 5, 5])
    assert numbers(last) == [FRAMES - 1, 5, 5]


DECODERS = [
    "pyav",
    pytest.param("torchcodec", marks=pytest.mark.skipif(not has_torchcodec(), reason="not here")),
]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("h264.mp4", {"codec": "libx264", "options": {"bf": "3", "g": "12"}, "frames": 50}),
        ("one.mp4", {"frames": 1}),
        ("odd.mp4", {"size": (31, 17), "codec": "libx264", "pixels": "yuv444p"}),
        ("rate.mp4", {"times": [n * n for n in range(16)]}),
        ("plain.avi", {"format": "avi"}),
        ("vp9.webm", {"format": "webm", "codec": "libvpx-vp9"}),
        ("plain.mkv", {"format": "matroska"}),
        ("long.mp4", {"frames": 10_000, "size": (16, 16)}),
    ],
)
def test_frames_by_number_of_all_kinds(
    name: str, how: dict[str, Any], decoder: str, tmp_path: Path
) -> None:
    path, count = written(tmp_path / name, **how), how.get("frames", 16)
    wanted = [count - 1, 0, count // 2, count // 2, count // 3]
    asked: list[int] = []
    shown = read_frames(path, lambda found: asked.append(found) or wanted, decoder)
    assert asked == [count]
    assert shown.shape[1:3] == how.get("size", (32, 48))
    np.testing.assert_allclose(levels(shown), [grey(number) for number in wanted], atol=6)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("matrix", "lit"),
    [
        ((1, 0, 0, 1), np.s_[:14]),
        ((0, 1, -1, 0), np.s_[:, 18:]),
        ((-1, 0, 0, -1), np.s_[18:]),
        ((0, -1, 1, 0), np.s_[:, :14]),
    ],
)
def test_turned_as_the_file_says(
    matrix: tuple[int, int, int, int], lit: Any, decoder: str, tmp_path: Path
) -> None:
    path = turned(written(tmp_path / "a.mp4", 3), matrix)
    (shown,) = read_frames(path, lambda count: [0], decoder)
    assert shown.shape[:2] == ((48, 32) if matrix[0] == 0 else (32, 48))
    dark = shown.astype(float)
    dark[lit] = np.nan
    assert shown[lit].mean() > 15
    assert np.nanmedian(dark) < 5


def test_a_folder_of_thirty_damaged_videos(tmp_path: Path) -> None:
    """Nothing fails, all that can't be shown is counted and named, nothing stays open."""
    content = written(tmp_path / "whole.mp4", codec="libx264").read_bytes()
    kept = {f"cut{n}": content[: n * len(content) // 8] for n in range(8)}  # the first is empty
    rng = np.random.default_rng(0)
    for n in range(6):
        changed = bytearray(content)
        for place in rng.integers(40, len(content), 30):
            changed[place] ^= 255
        kept[f"bits{n}"] = bytes(changed)
    kept |= {"text": b"no video", "list": b"#EXTM3U\nfile:///etc/passwd\n", "head": content[:12]}
    kept |= {"riff": b"RIFF\0\0\0\0AVI " + content[12:], "ebml": b"\x1a\x45\xdf\xa3" + content}
    for suffix, container in (("avi", "avi"), ("mkv", "matroska")):
        other = written(tmp_path / f"other.{suffix}", format=container).read_bytes()
        kept |= {f"named_{suffix}": other, f"half_{suffix}": other[: len(other) // 4]}
    for name, damaged in kept.items():
        (tmp_path / f"{name}.mp4").write_bytes(damaged)
    written(tmp_path / "sound.mp4", sound=True)
    written(tmp_path / "one.mp4", 1)
    written(tmp_path / "long.mp4", 10_000, (16, 16))
    written(tmp_path / "odd.mp4", size=(31, 17), codec="libx264", pixels="yuv444p")
    written(tmp_path / "rate.mp4", times=[n * n for n in range(16)])
    (tmp_path / "folder.mp4").mkdir()
    paths = sorted(map(str, tmp_path.glob("*.mp4")))
    assert len(paths) == 30
    choice = FrameChoice(2, "rand")
    how = {"max_corrupt": 1.0, "mode": "RGB"}
    source = EntryFrames(lambda entry: [paths[entry]], choice, len(paths), **how)
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.warns(UserWarning, match="unreadable video skipped") as warned:
        shown = {n: source.group(n, 0) for n in range(len(paths))}
    assert len(os.listdir("/proc/self/fd")) == opened
    bad = {Path(path).stem for path in source.corrupt}
    cut = {f"cut{n}" for n in range(7)}
    assert cut | {"text", "list", "head", "riff", "sound", "one", "folder", "half_avi"} <= bad
    assert not bad & {"whole", "named_avi", "named_mkv", "long", "odd", "rate"}
    assert len(warned) == len(bad)
    assert all("\n" not in str(warning.message) for warning in warned)
    assert str(warned[-1].message).endswith(f"{len(bad)} of {len(paths)} so far")
    assert all((frames is None) == (Path(paths[n]).stem in bad) for n, frames in shown.items())
    short = source.corrupt[str(tmp_path / "one.mp4")]
    assert "1 frames, of which 2 different ones can't be drawn" in short


def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path) -> None:
    content = (VIDEOS / "ramp.mp4").read_bytes()
    playlist = b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"
    kept = {"text.mp4": b"no video", "list.mp4": playlist, "head.mp4": content[:200]}
    for name, damaged in kept.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataCorruptError, match=rf"{name}: no readable video") as refused:
            read_frames(tmp_path / name, partial(uniform_frames, count=8))
        assert "\n" not in str(refused.value)
    with pytest.raises(DataNotFoundError, match=r"none\.mp4"):
        read_frames(tmp_path / "none.mp4", partial(uniform_frames, count=8))
    with pytest.raises(DataCorruptError, match="frame 97 of 97 is not there"):
        read_frames(VIDEOS / "ramp.mp4", lambda count: [0, count])


def test_frames_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "MOST_PIXELS", 48 * 32 - 1)
    with pytest.raises(DataCorruptError, match="larger than 1535 pixels"):
        read_frames(VIDEOS / "ramp.mp4", lambda count: [0])
    monkeypatch.setattr(videos, "MOST_PIXELS", 48 * 32)
    monkeypatch.setattr(videos, "MOST_SHOWN", 3 * 48 * 32)
    assert len(read_frames(VIDEOS / "ramp.mp4", lambda count: [0, 1, 1])) == 3
    with pytest.raises(DataCorruptError, match="4 of its frames have more than 4608 pixels"):
        read_frames(VIDEOS / "ramp.mp4", lambda count: [0] * 4)
    monkeypatch.setattr(videos, "MOST_FRAMES", FRAMES - 1)
    with pytest.raises(DataCorruptError, match="it has more than 96 frames"):
        read_frames(VIDEOS / "ramp.mp4", lambda count: [0])


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("av", "torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tenfold\[video\]'"):
        clips(tmp_path, ClipPairs, PAIRS).setup("test")
    with pytest.raises(ModuleNotFoundError, match="videos need torchcodec as asked for"):
        clips(tmp_path, ClipPairs, PAIRS, decoder="torchcodec").setup("test")
    with pytest.raises(ValueError, match="decoder='decord': known are auto, pyav, torchcodec"):
        videos.decoder("decord")


@pytest.mark.skipif(not has_torchcodec(), reason="not here")
def test_the_second_decoder_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert numbers(read_frames(VIDEOS / "ramp.mp4", lambda count: [0, 50])) == [0, 50]


PAIRS = [{"clip_name": f"clip{n}", "caption": f"A red {word}."} for n, word in enumerate("ab")]
PAIRS += [{"clip_name": "clip2", "caption": "what is this"}]
QUESTIONS: list[dict[str, Any]] = [
    {"video_id": "clip0", "question": "what is this?", "answer": "dog", "answer_type": "what"},
    {"video_id": "clip1", "question": "is this a dog", "answer": "doggy"},
    {"video_id": "clip1", "question": "what", "answer": "red"},
]


def clips(root: Path, kind: type[ImageTextData], entries: Any, **changes: Any) -> Any:
    """A data module of three equal clips."""
    for number in range(3):
        shutil.copy(VIDEOS / "ramp.mp4", root / f"clip{number}.mp4")
    lines = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    (root / "test.jsonl").write_text(lines)
    (root / "vocab.txt").write_text("\n".join(VOCABULARY[:-2]) + "\n")
    arguments: dict[str, Any] = {
        "files": {"test": str(root / "test.jsonl")},
        "image_root": str(root),
        "vocab": str(root / "vocab.txt"),
        "augmentation": plain_views(16, 0.0, 1.0),
        "batch_size": 2,
        "eval_batch_size": 2,
        "text_rules": "blip",
        "val_split": None,
        "frames": 4,
    }
    return kind(**arguments | changes)


def test_batches_of_clips(tmp_path: Path) -> None:
    data = clips(tmp_path, ClipPairs, PAIRS, max_text_tokens={"eval": 6})
    data.setup("test")
    first, second = data.test_dataloader()
    assert first["images"].shape == (2, 4, 3, 16, 16)
    levels = first["images"].mean(dim=(2, 3, 4)) * 219 / 2
    torch.testing.assert_close(levels.round(), torch.tensor([[0.0, 24, 48, 72]] * 2))
    assert first["text_image"].tolist() == [0, 1]
    assert second["indices"].tolist() == [2]
    assert first["input_ids"].shape == (2, 6)


def test_batches_of_questions(tmp_path: Path) -> None:
    data = clips(tmp_path, ClipQuestions, QUESTIONS, frames=1)
    data.setup("test")
    first, second = data.test_dataloader()
    assert first["images"].shape == (2, 1, 3, 16, 16)
    assert first["answers"] == [["dog"], ["doggy"]]
    assert first["kinds"] == [["what"], []]
    assert second["question_ids"].tolist() == [2]


def test_bad_annotations_and_unreadable_videos(tmp_path: Path) -> None:
    blank = [*QUESTIONS[:1], QUESTIONS[1] | {"answer": " "}]
    with pytest.raises(DataCorruptError, match=r"test\.jsonl, line 2: answer is ' ', expected a"):
        clips(tmp_path, ClipQuestions, blank).setup("test")
    for name, told in (("../clip0", "outside of the image root"), ("\0", "no name of a file")):
        with pytest.raises(DataCorruptError, match=told):
            clips(tmp_path, ClipPairs, [PAIRS[0] | {"clip_name": name}]).setup("test")
    with pytest.raises(DataNotFoundError, match=r"none of 1 videos is there"):
        clips(tmp_path, ClipPairs, [PAIRS[0] | {"clip_name": "gone"}]).setup("test")
    with pytest.raises(ValueError, match=r"no annotations of split .train.: .files. has test"):
        clips(tmp_path, ClipPairs, PAIRS).setup("fit")
    with pytest.raises(ValueError, match="frames=0"):
        clips(tmp_path, ClipPairs, PAIRS, frames=0)
    data = clips(tmp_path, ClipPairs, PAIRS, max_corrupt=0.5, eval_batch_size=3)
    (tmp_path / "clip1.mp4").write_bytes(b"no video")
    data.setup("test")
    with pytest.warns(UserWarning, match=r"clip1\.mp4: unreadable video skipped"):
        (batch,) = data.test_dataloader()
    assert batch["indices"].tolist() == [0, 2]


def test_retrieval_among_videos(tmp_path: Path) -> None:
    evaluation = {"k_test": "all", "score": "itm+itc", "medians": True}
    module = lively(build("retrieval", evaluation=evaluation))
    data = clips(tmp_path, ClipPairs, PAIRS, max_text_tokens={"eval": 6})
    (metrics,) = trainer().test(module, data, verbose=False)
    assert metrics["test/img_r5"] == 100
    # The videos are equal: a text looks for its own among three, and ties are lost.
    assert metrics["test/img_median_rank"] == 3
    assert 1 <= metrics["test/txt_median_rank"] <= 3


def test_questions_about_videos_are_answered_in_writing(tmp_path: Path) -> None:
    evaluation = {"inference": "generate", "match": "exact"}
    module = lively(build("vqa", evaluation=evaluation))
    with torch.no_grad():  # it says little but "doggy"
        module.encoders.word_head.bias[VOCABULARY.index("dog")] += 90
    module.generation = replace(module.generation, max_length=2, min_length=1)
    data = clips(tmp_path, ClipQuestions, QUESTIONS)
    (metrics,) = trainer(default_root_dir=tmp_path).test(module, data, verbose=False)
    assert metrics["test/evaluated"] == 3
    assert metrics["test/vqa_accuracy"] == pytest.approx(33.33)
    assert metrics["test/vqa_accuracy_what"] == 100
    assert json.loads((tmp_path / "vqa_result.json").read_text())[1]["answer"] == "dog"


def test_a_still_picture_is_a_video_of_one_frame() -> None:
    module = lively(build("vqa")).eval()
    images, ids = torch.randn(2, 3, 16, 16), torch.tensor([[2, 7, 3], [2, 8, 3]])
    mask = torch.ones_like(ids)
    still = module.encoders.read(images, ids, mask)
    video = module.encoders.read(images[:, None], ids, mask)
    twice = module.encoders.read(images[:, None].expand(-1, 2, -1, -1, -1), ids, mask)
    for one, other, doubled in zip(still, video, twice, strict=True):
        torch.testing.assert_close(one.key, other.key)
        torch.testing.assert_close(one.key, doubled.key)  # attention to equal tokens twice
    other_frame = torch.stack([images, images.flip(0)], dim=1)
    changed = module.encoders.read(other_frame, ids, mask)
    assert not torch.allclose(changed[0].key, still[0].key, atol=1e-3)


def test_unknown_ways_of_answering() -> None:
    for name in ("inference", "match"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            build("vqa", evaluation={name: "guess"})


def test_rules_of_frames() -> None:
    generator = np.random.default_rng(0)
    for video_frames in (8, 9, 30, 10_000):
        for rule in (random_frames, head_tail_frames):
            drawn = [rule(video_frames, 8, generator) for _ in range(20)]
            assert all(len(set(row)) == 8 and row == sorted(row) for row in drawn)
            assert all(row[0] >= 0 and row[-1] < video_frames for row in drawn)
            assert len(set(map(tuple, drawn))) > 1 or video_frames == 8
        halves = [sum(n < video_frames // 2 for n in row) for row in drawn]
        assert set(halves) == {4}
    assert even_frames(9, 4) == [0, 2, 4, 6]
    assert uniform_frames(3, 4) == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="7 frames, of which 8 different ones can't be drawn"):
        random_frames(7, 8, generator)
    with pytest.raises(ValueError, match="2 frames, of which 3 "):
        head_tail_frames(5, 6, generator)


def test_a_choice_is_of_entry_and_pass_alone() -> None:
    choice = FrameChoice(3, "headtail", "even", seed=1)
    assert choice.of(4, 7)(100) == choice.of(4, 7)(100)
    others = [choice.of(4, 8), choice.of(5, 7), replace(choice, seed=2).of(4, 7)]
    assert all(other(100) != choice.of(4, 7)(100) for other in others)
    assert choice.of(4)(100) == [0, 33, 66]
    assert FrameChoice(13).of(0)(15) == list(range(13))  # by rounding the official range has 14
    with pytest.raises(ValueError, match="no rule 'all' of frames: known are uniform, even"):
        FrameChoice(3, "all")
