"""The small models that come with Tenfold: what is made of the runs, and how it is compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

import albef_toy as toy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import benchmarks.zoo.__main__ as zoo
from benchmarks.zoo import text_tower, vision_tower
from shared.checkpoints.pretrained_text import load_hugging_face
from shared.checkpoints.pretrained_vision import load_vision
from shared.checkpoints.reading import load_checkpoint, load_module
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.checkpoints.zoo import ZOO, zoo_file
from shared.nn.text_transformer import LanguageHead, TextTransformer
from shared.nn.vision_transformer import VisionTransformer
from shared.predict.inputs import load_predictor
from tests.unit.test_predict import COLOUR

STEM: dict[str, Any] = toy.VISION | {"stem": {"cell": 2, "channels": [4, 6, 12]}}
TOWER = toy.TEXT | {"initial_std": 0.3, "hidden_size": 16}
TEXTS = ["dog", "cat", "red dog", "red cat"]


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cat", "red"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*words, *(f"w{n}" for n in range(toy.WORDS - len(words)))]) + "\n")
    return path


@pytest.fixture
def tower(vocab: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[text_tower.Student, Tensor]:
    """A student, and what it was taught of TEXTS."""
    for name, value in {"STEPS": 300, "BATCH": 16, "RATE": 3e-3}.items():
        monkeypatch.setattr(text_tower, name, value)
    targets = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    method = toy.TOKENS | {"text": TOWER}
    return text_tower.train(method, TEXTS, vocab, targets), targets


def test_a_text_tower_learns_what_its_teacher_says_and_starts_a_text_encoder(
    tower: tuple[text_tower.Student, Tensor], vocab: Path, tmp_path: Path
) -> None:
    student, targets = tower
    ids, mask = text_tower.WordPiece(vocab).batch(TEXTS)
    vectors, hidden = student(ids, mask)
    assert (vectors * targets).sum(dim=1).min() > 0.9
    text_tower.write(student, path := tmp_path / "below" / "text.safetensors")
    encoder = TextTransformer(**TOWER, context_width=12)
    head = LanguageHead(toy.WORDS, TOWER["hidden_size"])
    report = load_hugging_face(encoder, path, head)
    assert set(report.fresh.values()) == {"BERT has no cross-attention"}
    # Layers that read text alone come first in both, so that both give the same there.
    first = TextTransformer(**{**TOWER, "num_layers": 1, "cross_attention_from": None})
    first.load_state_dict(
        {k: v for k, v in student.text.state_dict().items() if "layers.1" not in k}
    )
    torch.testing.assert_close(encoder.encode(ids, mask), first.encode(ids, mask))
    assert torch.equal(head.dense.weight, student.word_head.dense.weight)
    assert hidden.shape == (*ids.shape, TOWER["hidden_size"])


def run_of(folder: Path, module: Any, vocab: Path) -> Path:
    """A finished run's folder, as `make zoo` reads it."""
    content: dict[str, Any] = {
        "hyper_parameters": dict(module.hparams), "state_dict": module.state_dict(),
        "datamodule_hyper_parameters": {"augmentation": COLOUR | {"size": 16}},
        "vocabulary": vocab.read_text().split(),
    }  # fmt: skip
    module.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content, folder / "checkpoints" / "last.ckpt")
    return folder / "checkpoints" / "last.ckpt"


def test_models_of_the_runs_are_small_and_load(
    tower: tuple[text_tower.Student, Tensor],
    vocab: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, place in {"MADE": "made", "TEXT": "made/text.safetensors", "ZOO": "zoo"}.items():
        monkeypatch.setattr(zoo, name, tmp_path / place)
    monkeypatch.setattr(zoo, "VISION", tmp_path / "made" / "vision.safetensors")
    (tmp_path / "zoo").mkdir()
    for name in zoo.CARDS:
        (tmp_path / "zoo" / f"{name}.md").write_text(f"# {name}\n\n{zoo.MEASURED}\nold\n")
    words = [*"abcd", "banana", "red apple", "spider web", "beach with umbrella"]
    drawings = [{"image": f"{n}.png", "caption": [w]} for n, w in enumerate(words)]
    (tmp_path / "common_pairs_test.json").write_text(json.dumps(drawings[:5]))
    (tmp_path / "pairs_test.json").write_text(json.dumps(drawings))
    for drawing in drawings:
        (tmp_path / str(drawing["image"])).write_text(str(drawing["caption"]))
    text_tower.write(tower[0], zoo.TEXT)
    module = toy.pretraining(vision=STEM, text=TOWER)
    with torch.no_grad():
        for parameter in module.momentum_encoders.parameters():
            parameter.add_(1.0)
    path = run_of(tmp_path / "run", module, vocab)
    save_file(VisionTransformer(**STEM).state_dict(), zoo.VISION)
    found = {"zoo_emoji": {"itc_img_r1": (61.2, 58.5, 63.8)}}
    vision, text, whole = zoo.export(path, found)
    for model in (vision, text, whole):
        assert model.stat().st_size < 0.6 * path.stat().st_size

    load_vision(VisionTransformer(**STEM), str(vision))
    load_hugging_face(TextTransformer(**TOWER, context_width=12), text)
    loaded: Any = load_module(whole)
    ours, copy = loaded.encoders.state_dict(), loaded.momentum_encoders.module.state_dict()
    for name, value in module.encoders.named_parameters():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-3)
        assert torch.equal(copy[name], ours[name])
    said = load_predictor(whole, "cpu").accuracy
    assert said.startswith("albef-emoji: of 1,301 names it finds 61 % at once")
    assert said.endswith("(95 % interval 58 to 64)")

    found |= {"vision": {}, "words": {"first_hits": (90.0, 69.9, 97.2)}}
    zoo.ship([vision, text, whole], found, tmp_path)
    shipped = {path.stem for path in (zoo.ZOO / "drawings").iterdir()}
    assert shipped == {"a", "d", "banana", "red-apple"}
    card = (zoo.ZOO / "albef-emoji.md").read_text()
    assert card.startswith("# albef-emoji\n")
    assert "old" not in card
    assert "| 61.2 | 58.5 to 63.8 |" in card
    assert card.count("first_hits") == 1
    assert "| 90.0 | 69.9 to 97.2 |" in card
    sums = dict(line.split()[::-1] for line in (tmp_path / "zoo" / "SHA256SUMS").open())
    assert sums.keys() == {f"{name}-emoji.safetensors" for name in ("vit", "text", "albef")}
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "zoo" / name).read_bytes()).hexdigest() == digest
    assert load_checkpoint(tmp_path / "zoo" / whole.name)["accuracy"] == said


def test_intervals() -> None:
    share = zoo.interval("test/itc_img_r1", 60.0)
    assert share == (60.0, pytest.approx(57.3, abs=0.1), pytest.approx(62.6, abs=0.1))
    # Hanley and McNeil give 0.0070 as the standard error of 0.9 with 1,301 cases of each kind.
    area = zoo.interval(zoo.AUC, 90.0)
    assert area[2] - area[0] == pytest.approx(1.2, abs=0.1)
    assert zoo.interval(zoo.AUC, 100.0) == (100.0, 100.0, 100.0)


def test_shipped_metrics_must_lie_within_the_new_intervals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {"zoo_emoji": {"itm_auc": (90.0, 88.0, 92.0)}}
    for shipped, agree in ((91.9, True), (92.1, False), (None, False)):
        before = {} if shipped is None else {"zoo_emoji": {"itm_auc": (shipped, 0.0, 0.0)}}
        assert zoo.report(found, before) is agree
        assert ("(outside)" in capsys.readouterr().out) is (shipped == 92.1)


def test_a_vision_tower_learns_names_and_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BATCH": 16, "KEPT_EVERY": 20}.items():
        monkeypatch.setattr(vision_tower, name, value)
    phase = vision_tower.Phase(32, 60, 5e-3, 1.0)
    bars = [(8, 60, 26, 38), (26, 38, 8, 60), (8, 56, 8, 56), (26, 38, 26, 38)]
    own = torch.zeros(4, 4, 64, 64, dtype=torch.uint8)
    for bar, (top, bottom, left, right) in zip(own, bars, strict=True):
        bar[0, top:bottom, left:right] = 200
        bar[3, top:bottom, left:right] = 255
    concepts = torch.arange(4).repeat(8)
    drawings = own[concepts][:, None].expand(-1, 2, -1, -1, -1)
    views = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.3)}
    held = torch.where(own[:, 3:] > 0, own[:, :3], 255), torch.arange(4)

    def trained(kept: Path, stop_at: int | None = None) -> vision_tower.Namer:
        torch.manual_seed(0)
        vision = {"patch_size": 8, "width": 16, "depth": 1, "heads": 2}
        vision |= {"stem": {"cell": 4, "channels": [8, 16]}}
        module = vision_tower.Namer(vision, F.normalize(torch.randn(4, 6), dim=1), 32).train()
        step = vision_tower.step

        def until(module: Any, *batch: Any) -> Tensor:
            if batch[-1] == stop_at:
                raise KeyboardInterrupt
            return step(module, *batch)

        with monkeypatch.context() as patch:
            patch.setattr(vision_tower, "step", until)
            vision_tower.train(module, drawings, concepts, views, phase, kept, held)
        return module

    whole = trained(tmp_path / "whole.ckpt")
    assert vision_tower.named(whole, *held, views) == 100
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed.ckpt", stop_at=50)
    resumed = trained(tmp_path / "killed.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    vision = {"patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    vision |= {"stem": {"cell": 4, "channels": [8, 16]}}
    larger = vision_tower.Namer(vision, whole.names, 64)
    larger.continue_from(whole)
    assert larger.vision.grid == 2 * whole.vision.grid
    assert torch.equal(larger.project.weight, whole.project.weight)
    assert torch.equal(larger.vision.pos_embed[:, 0], whole.vision.pos_embed[:, 0])


@pytest.mark.parametrize("least", [1.0, 0.4])
def test_views_keep_a_drawing_within_reach_and_differ_from_one_another(least: float) -> None:
    drawing = torch.zeros(1, 4, 64, 64)
    drawing[:, :, 24:40, 24:40] = 1.0
    generator = torch.Generator().manual_seed(0)
    phase = vision_tower.Phase(32, 1, 1.0, least)
    views = vision_tower.placed(drawing.expand(128, -1, -1, -1), phase, generator)
    small, views = views[64:, 3].sum(dim=(1, 2)), views[:64]
    assert (small > (30 if least == 1 else 5)).all()
    assert (small.min() < 20) == (least < 1)
    assert views.shape == (64, 4, 32, 32)
    covered = views[:, 3].sum(dim=(1, 2))
    assert (covered > 30).all()  # of 64 at the same scale
    assert (covered < 150).all()
    assert len(covered.round(decimals=3).unique()) == 64
    images = vision_tower.coloured(views, generator)
    assert images.shape == (64, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6
    white = (images[:, :, 0, 0] == 1).all(dim=1).float().mean()
    assert 0.4 < white < 0.8


@pytest.mark.slow
def test_words_find_their_drawings(tmp_path: Path) -> None:
    """What README says of the shipped model and the shipped drawings, nine of ten at least."""
    names = {path: path.stem.replace("-", " ") for path in (ZOO / "drawings").glob("*.png")}
    hits = zoo.first_hits(zoo_file("zoo:albef-emoji"), names, tmp_path)
    assert len(hits) == 20
    assert sum(word == zoo.noun(name) for word, name in hits.items()) >= 18
    assert (tmp_path / "contact_sheet.png").is_file()
