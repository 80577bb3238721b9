"""`tenfold predict` on a folder of videos: what the evaluation of the model's data would show."""

import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.image_text.videos import even_frames
from shared.data.readers.videos import read_frames
from shared.data.views.interface import build_views
from shared.predict.inputs import PredictError
from shared.predict.model import load
from shared.predict.outputs import GAP, STRIP, THUMBNAIL, Cell, sheet, strip
from tests.unit import alpro_toy, blip_toy, test_predict, test_predict_texts
from tests.unit.demo_toy import VOCABULARY
from tests.unit.test_data_videos import written
from tests.unit.test_predict import read
from tests.unit.test_predict_texts import VIEWS

pytest.importorskip("av")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "grey", "dog", "runs", "what", "is"]
AUGMENTATION = VIEWS | {"size": 32}
DATA = {"augmentation": AUGMENTATION, "text_rules": "alpro", "frames": 2, "test_frames": "even"}
TEXTS = {"grey": [2, 6, 3], "red dog runs": [2, 5, 7, 8, 3]}
LENGTHS = {"a.mp4": 16, "below/b.avi": 9, "c.mp4": 40}
SIZES = {"a.mp4": (32, 48), "below/b.avi": (64, 32), "c.mp4": (32, 32)}


def save(kind: str, path: Path, data: dict[str, Any] = DATA, **changes: Any) -> Any:
    module = alpro_toy.lively(alpro_toy.build(kind, **changes)).eval()
    test_predict.save(module, path, vocabulary=WORDS, datamodule_hyper_parameters=data)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Videos of several kinds, lengths and forms, one in a subfolder, beside what is none."""
    (tmp_path / "videos" / "below").mkdir(parents=True)
    for name, frames in LENGTHS.items():
        how = {"format": "avi"} if name.endswith("avi") else {"codec": "libx264"}
        written(tmp_path / "videos" / name, frames, SIZES[name], **how)
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    given = [f"checkpoint={folder}/last.ckpt", f"videos={folder}/videos", f"output={folder}/out"]
    return [*given, "device=cpu", *more]


def run(folder: Path, *more: str) -> Path:
    test_predict.main(arguments(folder, *more), composed=False)
    return folder / "out"


def clip(folder: Path, name: str, frames: int = 2) -> torch.Tensor:
    """What the evaluation shows of a video, (1, F, 3, 32, 32)."""
    shown = read_frames(folder / "videos" / name, partial(even_frames, count=frames))
    return build_views(AUGMENTATION)(list(shown), "test")[None]


@pytest.mark.parametrize("batch_size", [1, 64])
@torch.inference_mode()
def test_every_video_is_compared_with_every_text(folder, capsys, batch_size):
    module = save("retrieval", folder / "last.ckpt")
    (folder / "videos" / "cut.mp4").write_bytes((folder / "videos" / "c.mp4").read_bytes()[:400])
    output = run(folder, f"batch_size={batch_size}", f"texts={list(TEXTS)}")
    printed = capsys.readouterr()
    assert "3 videos predicted, 1 unreadable skipped" in printed.out
    assert "cut.mp4 (no readable video" in printed.err
    rows = {(row["path"], row["text"]): row for row in read(output, "scores.csv")}
    assert set(rows) == set(product(LENGTHS, TEXTS))
    for (name, text), row in rows.items():
        tokens, video = module.encoders.encode_image(clip(folder, name))
        ids = torch.tensor([TEXTS[text]])
        hidden, feature = module.encoders.encode_text(ids, torch.ones_like(ids))
        logits = module.matching.logits(
            module.encoders.text_encoder, tokens, hidden, torch.ones_like(ids)
        )
        match = logits.softmax(dim=1)[0, 1].item()
        assert float(row["similarity"]) == pytest.approx((video * feature).sum().item(), abs=1e-5)
        assert float(row["match_probability"]) == pytest.approx(match, abs=1e-5)
    assert len({row["match_probability"] for row in rows.values()}) == len(rows)
    assert len(read(output)) == 3
    # Two frames are as wide as two cells of pictures, and so the sheet is of strips.
    assert Image.open(output / "contact_sheet.png").width == 3 * (2 * THUMBNAIL + GAP) + GAP


def test_questions_about_videos(folder: Path) -> None:
    module = save("vqa", folder / "last.ckpt", answers=["yes", "no", "a dog"])
    questions = {"what is red?": [2, 9, 10, 5, 1, 3], "is grey": [2, 10, 6, 3]}
    output = run(folder, f"questions={list(questions)}")
    rows = read(output, "answers.csv")
    assert [(row["path"], row["question"]) for row in rows] == list(
        product(sorted(LENGTHS), questions)
    )
    for row in rows:
        ids = torch.tensor([questions[row["question"]]])
        batch = {"images": clip(folder, row["path"]), "input_ids": ids}
        with torch.inference_mode():
            ((answer, sure),) = module.answer(batch | {"attention_mask": torch.ones_like(ids)})
        assert row["answer"] == answer
        assert float(row["probability"]) == pytest.approx(sure, abs=1e-5)
    model = load(folder / "last.ckpt", device="cpu")
    ((found, _),) = model.answer([folder / "videos" / "a.mp4"], list(questions))
    assert found[0] == rows[0]["answer"]


def test_the_prompter_compares_by_similarity_alone(folder: Path) -> None:
    save("prompter", folder / "last.ckpt")
    rows = read(run(folder, f"texts={list(TEXTS)}"), "scores.csv")
    assert list(rows[0]) == ["path", "text", "similarity"]
    of_first = [float(row["similarity"]) for row in rows[:3]]
    assert of_first == sorted(of_first, reverse=True)
    grouped = read(run(folder))  # without texts
    assert list(grouped[0])[:3] == ["path", "group", "cosine"]
    assert {row["path"] for row in grouped} == set(LENGTHS)


def test_a_model_of_pictures_and_videos(folder, capsys):
    """BLIP, which was trained on pictures, must be told how many frames to look at."""
    module = blip_toy.lively(blip_toy.build("retrieval")).eval()
    test_predict.save(module, folder / "last.ckpt", VIEWS, vocabulary=VOCABULARY)
    given = arguments(folder, "texts=[a red dog]")
    assert "records no number of a video's frames: frames=8" in refused(capsys, given)
    said = refused(capsys, [*given, "frames=3", "overlays=1"])
    assert "overlays are drawn on images" in said
    rows = read(run(folder, "texts=[a red dog]", "frames=3"), "scores.csv")
    model = load(folder / "last.ckpt", "cpu", frames=3)
    files = [folder / "videos" / row["path"] for row in rows]
    found = model.match(files, ["a red dog"])[:, 0].tolist()
    assert [float(row["match_probability"]) for row in rows] == pytest.approx(found, abs=1e-5)
    frames = np.zeros((3, 20, 20, 3), np.uint8)
    assert len(model.features([frames, files[0]]).images) == 2
    assert model.features([frames[0]]).images.shape == model.features([frames]).images.shape
    for other in (frames[0], frames[:2]):
        with pytest.raises(PredictError, match="of unequal lengths"):
            model.features([frames, other])
    with pytest.raises(PredictError, match="overlays are drawn on images"):
        model.overlays(files[0], "a dog")


def refused(capsys: pytest.CaptureFixture[str], given: list[str]) -> str:
    return test_predict.refused(capsys, given)


def test_what_cannot_be_used_is_refused(folder, capsys, monkeypatch):
    save("retrieval", folder / "last.ckpt")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    places = [f"checkpoint={folder}/last.ckpt", f"output={folder}/out", "texts=[red]"]
    said = refused(capsys, [*places, f"images={folder}/a.png"])
    assert "Retrieval reads videos, not images" in said
    said = refused(capsys, [*places, f"videos={folder}/a.png"])
    assert "no video there (1 other files; read: .mp4, " in said
    for frames in (0, 257, 2.5, True, "x"):
        said = refused(capsys, arguments(folder, "texts=[red]", f"frames={frames}"))
        assert f"frames={frames!r}: a whole number from 1 to 256" in said
    for module in ("av", "torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, module, None)
    said = refused(capsys, arguments(folder, "texts=[red]"))
    assert "pip install 'tenfold[video]'" in said
    test_predict_texts.save(test_predict_texts.retrieval(), folder / "last.ckpt")
    said = refused(capsys, arguments(folder, "texts=[red]", "frames=2"))
    assert "Retrieval reads images, not videos" in said


def test_a_strip_shows_frames_side_by_side() -> None:
    frames = np.full((4, 30, 60, 3), 90, np.uint8)
    frames[2] = 200
    shown = strip(frames, [0, 5, 10, 1234])
    assert shown.size == (4 * THUMBNAIL, THUMBNAIL // 2)
    grey = np.asarray(shown.convert("L")).reshape(THUMBNAIL // 2, 4, THUMBNAIL)
    assert [grey[10, place, 64] for place in range(4)] == [90, 90, 200, 90]
    assert (grey[:, :3, -1] == 255).all()  # a line between them
    marked = (grey[:, :, :-1] > 240).sum(axis=(0, 2))  # the numbers, white
    assert all(marked > 0)
    assert marked[3] > marked[0]
    assert strip(frames.repeat(8, axis=0), range(32)).width == STRIP
    cells = [Cell(shown, "one"), Cell(shown, "other", "note")]
    page = sheet([("title", cells), ("next", cells[:1])])
    assert page.width == 2 * (4 * THUMBNAIL + GAP) + GAP  # ten pictures, or two strips of four
