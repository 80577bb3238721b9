"""A model in Python: the same figures as `tenfold predict` writes."""

from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.predict.inputs import PredictError
from shared.predict.model import Model, load
from tests.unit import test_predict
from tests.unit.test_predict import read, run
from tests.unit.test_predict_texts import AS_LIST, COLOURS, TEXTS, folder, retrieval, save, vqa

__all__ = ["folder"]  # the fixture


def test_features_and_matches_are_those_of_the_tables(folder: Path) -> None:
    rows = read(run(folder, AS_LIST), "scores.csv")
    expected = {(row["path"], row["text"]): row for row in rows}
    model = load(folder / "last.ckpt", device="cpu")
    small = Model(model.predictor, batch_size=2)
    files = [folder / "images" / name for name in COLOURS]
    pictures = [Image.open(files[0]), np.asarray(Image.open(files[1])), str(files[2])]
    for given, these in ((files, model), (pictures, small)):
        features = these.features(given, TEXTS)
        cosines, matches = features.images @ features.texts.T, these.match(given, TEXTS)
        for place, name in enumerate(COLOURS):
            for number, text in enumerate(TEXTS):
                row = expected[name, text]
                assert float(row["similarity"]) == pytest.approx(
                    cosines[place, number].item(), abs=1e-4
                )
                assert float(row["match_probability"]) == pytest.approx(
                    matches[place, number].item(), abs=1e-4
                )
    assert model.features(texts=TEXTS).images.shape == (0, 0)
    assert model.features(files).texts.shape == (0, 0)


def test_answers_are_those_of_the_table(folder: Path) -> None:
    save(vqa(), folder / "last.ckpt")
    questions = ["what is this?", "is this red"]
    rows = read(run(folder, f"questions={questions}"), "answers.csv")
    model = load(folder / "last.ckpt", device="cpu")
    answers = model.answer([folder / "images" / name for name in COLOURS], questions)
    found = dict(zip(product(COLOURS, questions), chain(*answers), strict=True))
    for row in rows:
        answer, probability = found[row["path"], row["question"]]
        assert answer == row["answer"]
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-4)


def test_classes_and_embeddings(tmp_path: Path) -> None:
    test_predict.write_checkpoint(tmp_path / "last.ckpt")
    test_predict.draw_images(tmp_path / "images")
    rows = read(run(tmp_path))
    model = load(tmp_path / "last.ckpt", device="cpu")
    probabilities = model.probabilities([tmp_path / "images" / row["path"] for row in rows])
    names: Any = model.class_names
    for row, own in zip(rows, probabilities, strict=True):
        for name, value in zip(names, own.tolist(), strict=True):
            assert float(row[name]) == pytest.approx(value, abs=1e-4)
    with pytest.raises(PredictError, match="has no features of images"):
        model.features([tmp_path / "images" / rows[0]["path"]])
    with pytest.raises(PredictError, match="has no features of texts"):
        model.features(texts=["a dog"])


def test_what_is_refused(folder: Path) -> None:
    model = load(folder / "last.ckpt", device="cpu")
    (folder / "images" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(PredictError, match=r"bad\.png cannot be read"):
        model.features([folder / "images" / "bad.png"])
    with pytest.raises(PredictError, match=r"none\.png cannot be read"):
        model.features([folder / "none.png"])
    with pytest.raises(PredictError, match=r"uint8 .* got float64 \(4, 4, 3\)"):
        model.features([np.zeros((4, 4, 3))])
    with pytest.raises(PredictError, match="answers no questions"):
        model.answer([folder / "images" / "a.png"], ["what is this"])
    with pytest.raises(PredictError, match="is no classifier"):
        model.probabilities([folder / "images" / "a.png"])
    with pytest.raises(PredictError, match="holds no word"):
        model.match([folder / "images" / "a.png"], ["!"])
    save(retrieval(), folder / "last.ckpt", vocabulary=None)
    with pytest.raises(PredictError, match="no vocabulary"):
        load(folder / "last.ckpt").match([folder / "images" / "a.png"], ["a dog"])
