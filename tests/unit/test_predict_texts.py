"""`tenfold predict` with texts and questions: tables, sheets, overlays, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from methods.albef.retrieval import Retrieval
from methods.albef.vqa import VQA
from shared.evaluation.attention_maps import contrast_saliency
from shared.predict import texts
from shared.predict.overlays import overlay, similarity_maps, word_spans
from shared.training.method import Method
from tests.unit import test_predict
from tests.unit.test_predict import read, run

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "square", "disc", "dog",
    "##gy", "what", "is", "this", "yes", "no",
]  # fmt: skip
VIEWS = test_predict.COLOUR | {
    "_target_": "shared.data.views.recipes.RecipeViews",
    "size": 16,
    "test_resize": None,
    "recipes": {},
}
VISION = {"image_size": 16, "patch_size": 4, "width": 12, "depth": 2, "heads": 3}
TEXT = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_layers": 4, "num_heads": 4,
    "intermediate_size": 32, "max_positions": 40, "cross_attention_from": 1,
}  # fmt: skip
TRAINING = {
    "lr": 1e-3, "min_lr": 1e-4, "warmup_lr": 1e-3, "warmup_blocks": 0, "epochs": 1,
    "weight_decay": 0.0, "encoder_momentum": 0.9, "alpha": 0.4, "ramp": False,
}  # fmt: skip
COLOURS = {"a.png": (250, 10, 10), "b.png": (10, 250, 10), "below/c.png": (10, 10, 250)}


def retrieval(rerank: bool = True, **text: Any) -> Retrieval:
    torch.manual_seed(4)
    return Retrieval(
        vision=VISION, text=TEXT | text, embed_dim=6, queue_size=8, temperature=0.07,
        hard_negatives=True, negatives="local", seed=0,
        evaluation={"k_test": "all", "rerank": rerank}, **TRAINING,
    )  # fmt: skip


def vqa() -> VQA:
    torch.manual_seed(4)
    answers = {"yes": [2, 15, 3], "no": [2, 16, 3], "a red dog": [2, 5, 6, 10, 3]}
    module = VQA(vision=VISION, text=TEXT, decoder_layers=2, k_test=3, answers=answers, **TRAINING)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)  # each image and question gets a probability of its own
    return module


def save(module: Method, path: Path, vocabulary: list[str] | None = WORDS, **facts: Any) -> None:
    test_predict.save(module, path, VIEWS, vocabulary=vocabulary, **facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of retrieval, and three pictures of different form, one in a subfolder."""
    save(retrieval(), tmp_path / "last.ckpt")
    generator = np.random.default_rng(0)
    for (name, colour), size in zip(COLOURS.items(), [(16, 16), (40, 20), (9, 30)], strict=True):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 6, (size[1], size[0], 3))
        Image.fromarray((np.array(colour) + noise - 3).clip(0, 255).astype(np.uint8)).save(path)
    return tmp_path


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    given = [f"checkpoint={folder}/last.ckpt", f"images={folder}/images", f"output={folder}/out"]
    return test_predict.refused(capsys, [*given, *arguments])


TEXTS = ["A red square!", "a green disc", "doggy"]
AS_LIST = "texts=['A red square!', a green disc, doggy]"


def view(folder: Path, name: str) -> torch.Tensor:
    """What the model sees of a picture, (1, 3, 16, 16)."""
    picture = Image.open(folder / "images" / name).convert("RGB")
    pixels = torch.from_numpy(np.array(picture.resize((16, 16), Image.Resampling.BILINEAR)))
    return (pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.25


def expected_scores(folder: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """(cosine, match probability) of every pair, one at a time."""
    module = retrieval().eval()
    found = {}
    ids = [[2, 5, 6, 8], [2, 5, 7, 9], [2, 10, 11]]
    for name in COLOURS:
        with torch.inference_mode():
            tokens, image = module.encoders.encode_image(view(folder, name))
            for text, row in zip(TEXTS, ids, strict=True):
                row_ids = torch.tensor([row])
                mask = torch.ones_like(row_ids)
                hidden, feature = module.encoders.encode_text(row_ids, mask)
                of = module.encoders.text_encoder
                logits = module.matching.logits(of, tokens, hidden, mask)
                cosine = float((image * feature).sum())
                found[name, text] = cosine, float(logits.softmax(dim=1)[0, 1])
    return found


@pytest.mark.parametrize(
    ("batch_size", "texts"), [(1, "texts={}/texts.txt"), (2, AS_LIST), (64, "texts={}/texts.txt")]
)
def test_every_pair_is_scored(folder, batch_size, texts):
    """Of a list or of a file."""
    (folder / "texts.txt").write_text("\ufeff" + "\n\n".join(TEXTS) + "\n", encoding="utf-8")
    output = run(folder, texts.format(folder), f"batch_size={batch_size}")
    rows = read(output, "scores.csv")
    assert list(rows[0]) == ["path", "text", "match_probability", "similarity"]
    expected = expected_scores(folder)
    found = {(r["path"], r["text"]): (float(r["similarity"]), float(r["match_probability"]))
             for r in rows}  # fmt: skip
    assert found.keys() == expected.keys()
    for pair, values in expected.items():
        assert found[pair] == pytest.approx(values, abs=3e-6), pair
    # Text after text, the best images of each first.
    assert [r["text"] for r in rows] == [text for text in TEXTS for _ in COLOURS]
    for start in (0, 3, 6):
        matches = [float(r["match_probability"]) for r in rows[start : start + 3]]
        assert matches == sorted(matches, reverse=True)

    best = read(output, "predictions.csv")
    assert [r["path"] for r in best] == list(COLOURS)
    for row in best:
        text = max(TEXTS, key=lambda text: expected[row["path"], text][1])
        assert row["text"] == text
        assert float(row["match_probability"]) == pytest.approx(
            expected[row["path"], text][1], abs=3e-6
        )
    assert not list(output.glob("overlay*"))


def test_the_sheet_shows_the_best_images_of_each_text(folder):
    sheet = Image.open(run(folder, AS_LIST, "sheet_images=4") / "contact_sheet.png")
    grey = np.asarray(sheet.convert("L"))
    # One image for each of the three texts, below one another.
    assert (sheet.width, sheet.height) == (260, 3 * (28 + 180) + 12)
    pixels = np.asarray(sheet)
    for row, text in enumerate(TEXTS):
        first = next(r for r in read(folder / "out", "scores.csv") if r["text"] == text)
        seen = pixels[row * 208 + 40 + 64, 12 + 64]
        assert np.abs(seen.astype(int) - COLOURS[first["path"]]).max() < 10
        assert grey[row * 208 + 8 : row * 208 + 28, 12:100].min() < 128, "no title"


def test_overlays_show_the_text_and_each_word(folder):
    output = run(folder, AS_LIST, "overlays=2")
    pages = [Image.open(output / f"overlay_{n}.png") for n in (1, 2, 3)]
    # The picture, the whole text, its words; two rows.
    assert [page.width for page in pages] == [12 + 5 * 204, 12 + 5 * 204, 12 + 3 * 204]
    assert not (output / "overlay_4.png").exists()
    page = np.asarray(pages[0]).astype(int)
    picture, whole, word = (page[120:140, 12 + k * 204 + 5 : 12 + k * 204 + 60] for k in (0, 1, 3))
    assert np.abs(picture - picture.mean(axis=(0, 1))).max() < 10
    assert np.abs(whole - picture).max() > 30
    assert np.abs(word - whole).max() > 5
    for layer in (2, 1):  # by default the last but one of layers 1 to 3
        output = run(folder, "texts=['A red square!']", "overlays=2", f"overlay_layer={layer}")
        assert (np.asarray(Image.open(output / "overlay_1.png")) == page).all() == (layer == 2)


def test_a_model_that_ranks_by_similarity_shows_what_makes_a_picture_similar(folder):
    pages = []
    for rerank in (True, False):
        save(retrieval(rerank), folder / "last.ckpt")
        output = run(folder, "texts=['A red square!']", "overlays=2")
        pages.append(np.asarray(Image.open(output / "overlay_1.png")))
    assert pages[0].shape == pages[1].shape
    assert (pages[0] != pages[1]).any()
    output = run(folder, "texts=['A red square!']", "overlays=2", "overlay_layer=0")
    assert (np.asarray(Image.open(output / "overlay_1.png")) != pages[1]).any()


@pytest.mark.parametrize("closing", [[], [3]])
def test_by_similarity_each_word_is_asked_for_alone(closing):
    model, views = retrieval().eval(), torch.randn(2, 3, 16, 16)
    ids = torch.tensor([2, 5, 10, 11, *closing])
    found = similarity_maps(model, views, ids, [slice(1, 2), slice(2, 4)], 1)
    assert found.shape == (2, 3, 4, 4)
    for place, words in enumerate(([5, 10, 11], [5], [10, 11])):
        text = torch.tensor([[2, *words, *closing]] * 2)
        alone = contrast_saliency(model, views, text, torch.ones_like(text), 1).whole()
        torch.testing.assert_close(found[:, place], alone)
    text = torch.tensor([2, *closing])  # of no words
    assert similarity_maps(model, views, text, [], 1).shape == (2, 1, 4, 4)


def test_words_are_pieces_joined():
    spans = word_spans(WORDS, [2, 5, 10, 11, 11, 6])
    assert spans == [("a", slice(1, 2)), ("doggygy", slice(2, 5)), ("red", slice(5, 6))]
    assert word_spans(WORDS, [2]) == []


def test_an_overlay_is_warm_where_the_map_is():
    picture = Image.new("RGB", (60, 40), (128, 128, 128))
    values = torch.zeros(4, 4)
    values[3, 0] = 1
    pixels = np.asarray(overlay(picture, values)).astype(int)
    red, _, blue = pixels[38, 2]
    assert red - blue > 50
    assert np.abs(pixels[2, 57] - 128).max() < 20
    assert (np.asarray(overlay(picture, torch.zeros(4, 4))) == 128).all()


def test_without_texts_images_are_grouped(folder):
    rows = read(run(folder), "predictions.csv")
    assert list(rows[0]) == ["path", "group", "cosine", *(f"e{n}" for n in range(6))]


def test_transparent_pictures_are_read_as_in_training(folder):
    """The same picture on white, and with its alpha channel, for a model that was given those."""
    save(retrieval(), folder / "last.ckpt", image_mode="RGBA")
    for path in (folder / "images").rglob("*.png"):
        path.unlink()
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12] = (200, 0, 0, 255)
    Image.fromarray(pixels).save(folder / "images" / "clear.png")
    white = np.full((16, 16, 3), 255, np.uint8)
    white[4:12, 4:12] = (200, 0, 0)
    Image.fromarray(white).save(folder / "images" / "white.png")
    output = run(folder, "texts=[a red square]", "overlays=2")
    one, other = read(output, "predictions.csv")
    assert one["similarity"] == other["similarity"]


def test_the_checkpoint_of_a_run_holds_the_vocabulary():
    class Data(pl.LightningDataModule):
        tokenizer = type("Tokenizer", (), {"tokens": WORDS})()

    module, checkpoint = retrieval(), {}
    module._trainer = type("Trainer", (), {"datamodule": Data()})()  # type: ignore[assignment]
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["vocabulary"] == WORDS


def test_unreadable_images_are_skipped_and_named(folder, capsys):
    (folder / "images" / "aa.jpg").write_text("no image")
    rows = read(run(folder, AS_LIST), "scores.csv")
    assert len(rows) == 9
    printed = capsys.readouterr()
    assert "3 images predicted, 1 unreadable skipped" in printed.out
    assert "aa.jpg" in printed.err


def test_bad_texts_are_refused_in_one_line(folder, capsys):
    def message(*arguments: str) -> str:
        return refused(folder, capsys, *arguments)

    assert "texts=a dog: no such file; texts themselves are given as a list" in message(
        "texts=a dog"
    )
    (folder / "empty.txt").write_text("\n  \n")
    assert "no text in it" in message(f"texts={folder}/empty.txt")
    assert "no text in it" in message("texts=[]")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in message(f"texts={folder}/binary.txt")
    assert "text 2 holds no word: '?!'" in message("texts=[a dog, '?!']")
    assert "choose one of them" in message("texts=[a dog]", "questions=[what is this]")
    assert "Retrieval answers none" in message("questions=[what is this]")
    assert "overlay_layer: layer 0 has no cross-attention" in message(
        AS_LIST, "overlays=1", "overlay_layer=0"
    )
    save(retrieval(rerank=False), folder / "last.ckpt")
    assert "overlay_layer: no block 2" in message(AS_LIST, "overlays=1", "overlay_layer=2")
    assert not (folder / "out").exists()
    save(retrieval(), folder / "last.ckpt", vocabulary=None)
    assert "records no vocabulary" in message(AS_LIST)
    save(retrieval(), folder / "last.ckpt", vocabulary=["a", "b"])
    assert "its vocabulary is refused" in message(AS_LIST)


def test_long_texts(folder, capsys):
    """Beyond 30 words a caption is cut, as in training; beyond the positions it is refused."""
    long = " ".join(["dog"] * 33)
    run(folder, f"texts=[a dog, {long}]")
    assert "text 2: its first 30 of 33 words are read" in capsys.readouterr().err
    save(retrieval(max_positions=20), folder / "last.ckpt")
    message = refused(folder, capsys, f"texts=[a dog, {' '.join(['dog'] * 25)}]")
    assert "text 2 is too long: it has 26 tokens, the model reads 20" in message


def test_a_model_for_questions_needs_them(folder, capsys):
    save(vqa(), folder / "last.ckpt")
    assert "VQA does not compare images with texts" in refused(folder, capsys, AS_LIST)
    assert "VQA answers questions: give questions" in refused(folder, capsys)


QUESTIONS = {"What is this?": [2, 12, 13, 14], "red dog": [2, 6, 10]}


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_every_image_is_asked_every_question(folder, batch_size):
    """And answered as if it were the only one."""
    save(vqa(), folder / "last.ckpt")
    output = run(folder, "questions=['What is this?', red dog]", f"batch_size={batch_size}")
    rows = read(output, "answers.csv")
    assert list(rows[0]) == ["path", "question", "answer", "probability"]
    asked = [(path, question) for path in COLOURS for question in QUESTIONS]
    assert [(r["path"], r["question"]) for r in rows] == asked
    module = vqa().eval()
    for row in rows:
        ids = torch.tensor([QUESTIONS[row["question"]]])
        batch = {"images": view(folder, row["path"]), "input_ids": ids}
        batch["attention_mask"] = torch.ones_like(ids)
        with torch.inference_mode():
            ((answer, probability),) = module.answer(batch)
        assert row["answer"] == answer
        assert float(row["probability"]) == pytest.approx(probability, abs=3e-6)
    assert len({row["probability"] for row in rows}) == len(rows)
    assert (output / "contact_sheet.png").is_file()


def test_bad_questions_are_refused_in_one_line(folder, capsys):
    save(vqa(), folder / "last.ckpt")
    assert "question 1 holds no word" in refused(folder, capsys, "questions=['?']")
    long = " ".join(["dog"] * 45)
    assert "question 1 is too long: it has 46 tokens" in refused(
        folder, capsys, f"questions=[{long}]"
    )
    assert "questions=x.txt: no such file" in refused(folder, capsys, "questions=x.txt")


def test_the_match_ranks_the_most_similar_images_alone() -> None:
    match = np.float32([[0.9, 0.1], [0.2, 0.8], [0.8, 0.3], [0.5, 0.3]])
    similarity = np.float32([[0.1, 0.9], [0.3, 0.2], [0.4, 0.3], [0.2, 0.4]])
    assert texts.ranked(match, similarity, "all").T.tolist() == [[0, 2, 3, 1], [1, 3, 2, 0]]
    assert texts.ranked(match, similarity, 2).T.tolist() == [[2, 1, 3, 0], [3, 0, 2, 1]]
    everything = texts.ranked(match, similarity, "all")
    np.testing.assert_array_equal(texts.ranked(match, similarity, 9), everything)
    assert texts.ranked(match, similarity, 0).T.tolist() == [[2, 1, 3, 0], [0, 3, 2, 1]]


def test_a_model_that_does_not_re_rank_is_asked_for_similarity(folder: Path) -> None:
    module = retrieval()
    module.hparams["evaluation"] = {"k_test": 3, "rerank": False}
    save(module, folder / "last.ckpt")
    rows = read(run(folder, AS_LIST), "scores.csv")
    for text in TEXTS:
        cosines = [float(row["similarity"]) for row in rows if row["text"] == text]
        assert cosines == sorted(cosines, reverse=True)
    best = {(row["path"], row["text"]): float(row["similarity"]) for row in rows}
    for row in read(folder / "out"):
        assert float(row["similarity"]) == max(best[row["path"], text] for text in TEXTS)
