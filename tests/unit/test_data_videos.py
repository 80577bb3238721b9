"""Frames of videos, batches of clips, and what a model answers to them.

Frame n of the videos in tests/fixtures/videos is grey of luma 16 + 2 n, so that its pixels tell its
number: ffmpeg -f lavfi -i "color=black:s=48x32:r=25:d=4,geq=lum='16+2*N':cb=128:cr=128"
-frames:v 97 ramp.mp4 (and ramp.avi).
"""

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text.clips import ClipPairs, ClipQuestions
from shared.data.image_text.pairs import ImageTextData
from shared.data.image_text.videos import uniform_frames
from shared.data.readers import videos
from shared.data.readers.videos import read_frames
from tests.unit.albef_toy import trainer
from tests.unit.blip_toy import build, lively
from tests.unit.demo_toy import VOCABULARY
from tests.unit.views_toy import plain_views

pytest.importorskip("av")
VIDEOS = Path(__file__).parents[1] / "fixtures/videos"
FRAMES = 97


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


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tenfold\[video\]'"):
        clips(tmp_path, ClipPairs, PAIRS).setup("test")


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
