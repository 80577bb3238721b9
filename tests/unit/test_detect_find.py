"""tenfold-detect IMAGES --classes: objects by words, where names are embedded, what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from methods.pb_ovd import official, texts
from methods.pb_ovd.detect import cli
from methods.pb_ovd.prompts import prompts
from methods.pb_ovd.texts import ClipTexts, embedder
from shared.data.detection.framing import framing
from shared.demo.desk import Desk
from shared.predict.inputs import PredictError
from shared.predict.model import load
from tests.unit import albef_toy, test_predict
from tests.unit import pb_ovd_toy as toy
from tests.unit.test_predict_detections import DATA, save

Run = Callable[..., tuple[int, str]]
OWN = ["red", "green", "blue", "yellow"]
SIZES = {"a.png": (48, 48), "below/b.png": (96, 72)}  # width, height


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector's checkpoint, pictures of two sizes, and embedded names."""
    folder = tmp_path_factory.mktemp("find")
    save_detector(folder / "detector.ckpt")
    (folder / "images/below").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    vectors = {f"thing {number}": vector for number, vector in enumerate(toy.texts(2000).tolist())}
    (folder / "names.json").write_text(json.dumps(vectors))
    return folder


def save_detector(path: Path) -> None:
    test_predict.save(toy.detector().eval(), path, None, class_names=OWN)
    content = torch.load(path, weights_only=True)
    content["datamodule_hyper_parameters"] = DATA
    torch.save(content, path)


@pytest.fixture
def run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> Run:
    """A command that opens no connection: its exit status, and all that it printed."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it opens a connection"))
    given = {"--detector": place / "detector.ckpt", "--out": tmp_path / "out", "--device": "cpu"}
    given |= {"--min-score": 0.0}

    def command(*words: Any) -> tuple[int, str]:
        more = [word for pair in given.items() if pair[0] not in words for word in pair]
        status = cli.main([str(word) for word in (*words, *more)])
        said, error = capsys.readouterr()
        return status, said + error

    return command


def entries(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out/detections.json").read_text())


def test_boxes_are_those_of_the_detector_for_these_names(place, run, tmp_path):
    status, said = run(place / "images", "--classes", "blue,  red,blue", "--batch-size", 1)
    assert status == 0, said
    module = toy.detector(selection={"threshold": 0.0, "nms": 0.5, "limit": 100}).eval()
    pixels = np.asarray(Image.open(place / "images/below/b.png"))
    named = module.texts[[0, 3, 1]]
    with torch.no_grad():
        boxes, scores, labels = module.detect(framing(DATA).batch([pixels]), named)
    rows = [row for row in entries(tmp_path) if row["image"] == "below/b.png"]
    own = scores[0] > 0
    assert [row["score"] for row in rows] == pytest.approx(scores[0, own].tolist(), abs=1e-5)
    assert [row["category_id"] for row in rows] == labels[0, own].tolist()
    assert {row["category"] for row in rows} <= {"red", "blue"}
    sides = torch.tensor([row["bbox"] for row in rows])[:, 2:]
    assert (sides > 0).all()
    assert len(rows) == int(own.sum()) <= len(boxes[0])
    page = (tmp_path / "out/sheet.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(SIZES)
    assert "classes: blue, red" in page
    with Image.open(tmp_path / "out/pictures/2.png") as drawn:
        assert drawn.size == (384, 288)


def test_two_thousand_classes_of_a_file_and_those_that_it_lacks(place, run, tmp_path):
    words = [f"thing {number}" for number in range(1, 2001)]
    (tmp_path / "names.txt").write_text("\n".join(words))
    given = "--classes", tmp_path / "names.txt", "--texts", place / "names.json"
    status, said = run(place / "images", *given)
    assert (status, "of 2,000 classes in 2 pictures" in said) == (0, True), said
    status, said = run(place / "images", "--classes", "thing 1, thong 7", *given[2:])
    assert (status, said.count("\n")) == (1, 1)
    assert "no embedding of 'thong 7', of 2001 known; near the first: 'thing 7'" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", " , "], "0 names are given: one, or up to 10000"),
        (["--classes", "x" * 201], "a name is longer than 200 characters"),
        (["--classes", "red", "--texts", "nothing.json"], "nothing.json not found"),
        (["--classes", "red", "--texts", "nowhere"], "no folder of a model"),
        (["--classes", "red", "--detector", "nothing.ckpt"], "nothing.ckpt"),
        (["--classes", "nothing.txt"], "no such file"),
        (["--classes", "zebra"], "no embedding of 'zebra', of 4 known; embed any name by CLIP"),
        (["--classes", "red", "--device", "abacus"], "device=abacus cannot be used here"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(place, run, monkeypatch, words, said):
    monkeypatch.chdir(place)
    status, told = run(place / "images", *words)
    assert (status, told.count("\n")) == (1, 1), told
    assert told.startswith("tenfold-detect: ")
    assert said in told


def test_pictures_that_cannot_be_read_and_folders_without_any(place, run, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    status, said = run(images, "--classes", "red")
    assert (status, "no image there (0 other files; read: .jpg" in said) == (1, True), said
    evil = "<img src=x onerror=alert(1)>.png"
    (images / evil).write_bytes(b"noise")
    status, said = run(images, "--classes", "red")
    assert (status, "none of the 1 images can be read" in said) == (1, True), said
    (images / "good.png").write_bytes((place / "images/a.png").read_bytes())
    (images / "link.png").symlink_to(place / "images/a.png")
    status, said = run(images, "--classes", "red")
    assert status == 0, said
    assert f"unreadable: {evil}" in said
    assert "1 unreadable left out" in said
    page = (tmp_path / "out/sheet.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror" in page


def test_an_official_detector_needs_no_data_but_names(place, run, tmp_path, monkeypatch):
    checkpoint = tmp_path / "finetune.pth"
    torch.save(official.export(toy.detector()), checkpoint)
    kinds = {"method": "module.OpenVocabularyDetector", "data": "data.OpenVocabularyData"}
    nowhere = dict.fromkeys(("train", "val", "test"), "nowhere.json")
    data = {"embeddings": None, "files": nowhere, "image_roots": nowhere, "sampling": {}, **DATA}
    data |= {"resizing": DATA["eval_resizing"], "flip": 0.0, "batch_size": 1, "eval_batch_size": 1}
    config = {"method": toy.settings(), "data": data}
    for key, kind in kinds.items():
        config[key]["_target_"] = f"methods.pb_ovd.{kind}"
    composed = OmegaConf.create(config)
    monkeypatch.setattr("shared.predict.official.compose_experiment", lambda *_: composed)
    given = "--detector", checkpoint, "--experiment", "pb_ovd/coco", "--classes", "thing 3"
    status, said = run(place / "images", *given, "--texts", place / "names.json")
    assert status == 0, said
    assert {row["category"] for row in entries(tmp_path)} == {"thing 3"}
    status, said = run(place / "images", *given)
    assert (status, "no embedding of 'thing 3', of 0 known" in said) == (1, True), said


def test_other_models_find_nothing(place, run, tmp_path):
    test_predict.save(albef_toy.retrieval().eval(), tmp_path / "albef.ckpt", None)
    status, said = run(place / "images", "--classes", "red", "--detector", tmp_path / "albef.ckpt")
    assert status == 1
    assert said.count("\n") == 1
    save(tmp_path, class_names=OWN)
    status, said = run(place / "images", "--classes", "red", "--detector", tmp_path / "last.ckpt")
    assert (status, "detects no classes by their names" in said) == (1, True), said


class Encoder:
    """Stands in for CLIP's text model: a sentence's embedding is its first tokens."""

    calls = 0

    def __call__(self, input_ids, **_: Any) -> Any:
        Encoder.calls += 1
        return type("Output", (), {"text_embeds": input_ids[:, :2].half()})


def test_sentences_about_a_name_are_embedded_by_pieces_and_averaged(monkeypatch):
    def tokenizer(sentences: list[str], **_: Any) -> dict[str, torch.Tensor]:
        assert len(sentences) <= 7
        lengths = [[len(s), s.count("a"), 0] for s in sentences]
        return {"input_ids": torch.tensor(lengths)}

    monkeypatch.setattr(texts, "AT_ONCE", 7)
    encoder = object.__new__(ClipTexts)
    encoder._tokenizer, encoder._model, encoder._longest = tokenizer, Encoder(), 77
    found = encoder(["dog", "red apple"])
    expected = [[float(len(s)), float(s.count("a"))] for s in prompts("red apple")]
    torch.testing.assert_close(found[1], torch.tensor(expected).mean(dim=0))
    assert found.shape == (2, 2)
    assert Encoder.calls == 18


def test_without_transformers_what_to_do_is_said(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        PredictError, match=r"needs transformers: pip install 'tenfold\[huggingface"
    ):
        embedder(str(tmp_path), {}, 6)


def test_a_text_encoder_of_clip_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.-'"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: n for n, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    files = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    transformers.CLIPTokenizer(*files).save_pretrained(tmp_path)
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    shape |= {"num_hidden_layers": 2, "projection_dim": toy.DIM, "vocab_size": len(words)}
    config = transformers.CLIPTextConfig(**shape, eos_token_id=len(words) - 1)
    model = transformers.CLIPTextModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    embed = embedder(str(tmp_path), {}, toy.DIM)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    rows = []
    for sentence in prompts("dog"):
        with torch.no_grad():
            rows.append(model(**tokenizer(sentence, return_tensors="pt")).text_embeds[0])
    torch.testing.assert_close(embed(["cat", "dog"])[1], torch.stack(rows).mean(dim=0))
    with pytest.raises(PredictError, match="its embeddings have 6 numbers, those of the detector"):
        embedder(str(tmp_path), {}, 512)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PredictError, match="is no text encoder of CLIP"):
        embedder(str(tmp_path), {}, toy.DIM)


def test_the_demo_page_asks_by_words(place):
    model = load(place / "detector.ckpt", device="cpu")
    model.open_texts(str(place / "names.json"))
    desk = Desk({"detector": model})
    assert desk.names == {"detect": "detector"}
    picture = place / "images/a.png"
    said, shown = desk.detect(str(picture), "thing 5, thing 1999", 0.0)
    assert {line.rpartition(" ")[0].rpartition(" ")[0] for line in said.splitlines()} <= {
        "thing 5", "thing 1999",
    }  # fmt: skip
    assert max(shown.size) == 384
    assert desk.detect(str(picture), "thing 5", 1.0)[0] == "nothing"
    for words, told in (("", "type a class"), ("thong", "no embedding of 'thong'")):
        with pytest.raises(PredictError, match=told):
            desk.detect(str(picture), words, 0.5)
    with pytest.raises(PredictError, match="101 names are given"):
        desk.detect(str(picture), ",".join(map(str, range(101))), 0.5)
