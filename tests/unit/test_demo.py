"""What stands behind the demo page, without gradio: abilities, bounds, hostile texts and names."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared import cli
from shared.demo import command, desk
from shared.demo.desk import Desk, typed, upload
from shared.predict.inputs import PredictError
from shared.predict.model import Model, load
from tests.unit.demo_toy import EVIL, KINDS, write_checkpoint, write_pictures


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    for kind in KINDS:
        write_checkpoint(folder / f"{kind}.ckpt", kind)
    write_pictures(folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def models(place: Path) -> dict[str, Model]:
    return {kind: load(place / f"{kind}.ckpt", device="cpu") for kind in KINDS}


@pytest.fixture(scope="module")
def full(place: Path, models: dict[str, Model]) -> Desk:
    return Desk(models, place / "pictures")


def captioned(full: Desk, path: Any, **changes: Any) -> str:
    options: dict[str, Any] = {
        "prompt": "a", "sampled": False, "beams": 2, "top_p": 0.9, "lengths": (0, 8), "seed": 0,
    }  # fmt: skip
    return full.caption(path, **options | changes)


def test_each_model_does_what_it_can(models: dict[str, Model], full: Desk) -> None:
    assert [models[kind].abilities for kind in KINDS] == [{"captions"}, {"answer"}, {"match"}]
    assert full.names == {"captions": "captioning", "answer": "vqa", "match": "retrieval"}
    twice = Desk({"first": models["vqa"], "second": models["vqa"]})
    assert twice.names == {"answer": "first"}
    assert twice.album is None


def test_captions_by_beams_and_by_chance(place: Path, models: dict[str, Model], full: Desk) -> None:
    path = place / "pictures" / "red.png"
    model = models["captions" if "captions" in models else "captioning"]
    assert model.prompt == "a"
    usual = model.captions([path])
    assert usual == model.captions([path], prompt="a")
    assert captioned(full, path) == model.captions([path], "a", num_beams=2, min_length=0)[0]
    assert EVIL in captioned(full, path)
    wide = {"sampled": True, "top_p": 1.0, "lengths": (3, 8)}
    samples = captioned(full, path, **wide)
    assert samples.count("\n") == desk.SAMPLES - 1
    assert samples == captioned(full, path, **wide)
    assert len(captioned(full, path, lengths=(0, 3)).split(EVIL)) <= 3
    for wrong in ({"lengths": (6, 5)}, {"lengths": (0, 2)}, {"lengths": (0, 99)}, {"beams": 99}):
        with pytest.raises(PredictError, match=r"length|long|beams"):
            captioned(full, path, **wrong)
    with pytest.raises(PredictError, match="unexpected keyword"):
        model.captions([path], colour="red")
    with pytest.raises(PredictError, match="VQA writes no captions"):
        models["vqa"].captions([path])


def test_an_answer_and_its_probability(place: Path, full: Desk) -> None:
    said = full.answer(str(place / "pictures" / "red.png"), "what is this?")
    assert said == f"{EVIL} (100.0 %)"


def test_a_match_shows_every_word(place: Path, models: dict[str, Model], full: Desk) -> None:
    path = str(place / "pictures" / "red.png")
    said, maps = full.match(path, "A doggy!")
    expected = models["retrieval"].match([path], ["A doggy!"]).item()
    assert said == f"{100 * expected:.1f} %"
    names = ["what the model sees", "the whole text", "a", "doggy"]
    assert [name for _, name in maps] == names
    assert all(max(picture.size) == desk.SIDE for picture, _ in maps)
    with pytest.raises(PredictError, match="layer 7 has no cross-attention"):
        models["retrieval"].overlays(path, "a dog", layer=7)
    with pytest.raises(PredictError, match="Captioning does not match"):
        models["captioning"].overlays(path, "a dog")


def test_a_folder_is_searched_and_nothing_else(
    place: Path, models: dict[str, Model], tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "own")
    (folder / "link.png").symlink_to(place / "pictures" / "red.png")
    full = Desk(models, folder)
    assert full.album is not None
    assert full.album.skipped == 2
    shown = full.search("a red square", 2)
    assert len(shown) == 2
    names = {note.partition(" % ")[2] for _, note in full.search("a red square", 99)}
    assert names == {"red.png", f"{EVIL}.png", "below/**bold**\\u202egpj.png"}
    scores = [float(note.partition(" ")[0]) for _, note in full.search("a red square", 99)]
    assert scores == sorted(scores, reverse=True)
    for path in list(full.album.paths):
        path.unlink()
    with pytest.raises(PredictError, match="can no longer be read"):
        full.search("a dog", 2)
    with pytest.raises(PredictError, match="none of the 2 pictures can be read"):
        Desk(models, folder)
    with pytest.raises(PredictError, match="no model here compares"):
        Desk({"vqa": models["vqa"]}, folder)
    with pytest.raises(PredictError, match="no folder of pictures"):
        Desk(models).search("a dog", 2)


def test_uploads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(tmp_path / "a.png")
    assert upload(tmp_path / "a.png", "RGB").size == (50, 30)
    (tmp_path / "page.png").write_text("<svg onload=alert(1)>")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("page.png", "pipe.png", "none.png", "."):
        with pytest.raises(PredictError, match="no picture of a kind that is read: BMP, GIF"):
            upload(tmp_path / name, "RGB")
    with pytest.raises(PredictError, match="choose a picture first"):
        upload(None, "RGB")
    for limit in ("MOST_BYTES", "MOST_PIXELS"):
        with monkeypatch.context() as patch:
            patch.setattr(desk, limit, 60)
            with pytest.raises(PredictError, match="the picture is too large"):
                upload(tmp_path / "a.png", "RGB")
    monkeypatch.setattr(desk, "SHOWN_PIXELS", 400)
    assert upload(tmp_path / "a.png", "RGB").size == (25, 15)


def test_texts_are_bounded_and_printable() -> None:
    assert typed("  what\nis \x00this ", "question") == "what is \\x00this"
    assert typed(None, "prompt", empty=True) == ""
    with pytest.raises(PredictError, match="type a question first"):
        typed(" \n", "question")
    with pytest.raises(PredictError, match="longer than 500 characters"):
        typed("a" * 501, "text")


def test_a_method_means_its_newest_runs(tmp_path: Path) -> None:
    for run, module in (("vqa/seed1", "VQA"), ("vqa/seed2", "VQA"), ("cap/seed1", "Captioning")):
        folder = tmp_path / "blip" / run / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
        (folder.parent / "config.yaml").write_text(f"method: {{_target_: methods.blip.{module}}}")
    os.utime(tmp_path / "blip/vqa/seed1/checkpoints/last.ckpt", (1, 1))
    (tmp_path / "blip/vqa/seed1/x/checkpoints").mkdir(parents=True)
    (tmp_path / "blip/vqa/seed1/x/checkpoints/last.ckpt").touch()
    found = {path.removeprefix(f"{tmp_path}/blip/") for path in command.meant("blip", tmp_path)}
    assert found == {"vqa/seed2/checkpoints/last.ckpt", "cap/seed1/checkpoints/last.ckpt"}
    assert command.meant("zoo:albef-emoji", tmp_path) == ["zoo:albef-emoji"]
    with pytest.raises(PredictError, match="no run of albef below"):
        command.meant("albef", tmp_path)


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["tenfold", "demo", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_what_the_command_refuses(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = f"{place}/vqa.ckpt"
    assert "did you mean port?" in refused(monkeypatch, capsys, "prot=1")
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "pip install -e '.[demo]'" in refused(monkeypatch, capsys, file)
    monkeypatch.setattr(command, "find_spec", lambda name: True)
    monkeypatch.chdir(place)
    assert "no run of pb_ovd below outputs/" in refused(monkeypatch, capsys, "detect")
    assert "no checkpoint given; usage: " in refused(monkeypatch, capsys)
    assert "port=70000: a whole number" in refused(monkeypatch, capsys, file, "port=70000")
    assert "no checkpoint at none.ckpt" in refused(monkeypatch, capsys, "none.ckpt")
    two = refused(monkeypatch, capsys, file, file, "official=blip/vqa")
    assert "2 checkpoints, but 1 experiments" in two
    assert "no such folder" in refused(
        monkeypatch, capsys, f"{place}/retrieval.ckpt", f"images={place}/none", "device=cpu"
    )
