"""The small models that come with Tenfold: what is made of the runs, and how it is compared."""

from pathlib import Path
from typing import Any

import albef_toy as toy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import benchmarks.zoo.__main__ as zoo
from benchmarks.zoo import text_tower
from shared.checkpoints.pretrained_text import load_hugging_face
from shared.checkpoints.pretrained_vision import load_vision
from shared.checkpoints.reading import load_module
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.nn.text_transformer import LanguageHead, TextTransformer
from shared.nn.vision_transformer import VisionTransformer
from shared.predict.inputs import load_predictor
from tests.unit.test_predict import COLOUR

STEM: dict[str, Any] = toy.VISION | {"stem": [4, 6, 12]}
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
    for name, place in {"MADE": "made", "TEXT": "made/text.safetensors"}.items():
        monkeypatch.setattr(zoo, name, tmp_path / place)
    text_tower.write(tower[0], zoo.TEXT)
    module = toy.pretraining(vision=STEM, text=TOWER)
    with torch.no_grad():
        for parameter in module.momentum_encoders.parameters():
            parameter.add_(1.0)
    path = run_of(tmp_path / "run", module, vocab)
    found = {"zoo_emoji": {"itc_img_r1": (61.2, 58.5, 63.8)}}
    vision, text, whole = zoo.export(path, path, found)
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


def test_intervals() -> None:
    share = zoo.interval("test/itc_img_r1", 60.0)
    assert share == (60.0, pytest.approx(57.3, abs=0.1), pytest.approx(62.6, abs=0.1))
    # Hanley and McNeil give 0.0070 as the standard error of 0.9 with 1,301 cases of each kind.
    area = zoo.interval(zoo.AUC, 90.0)
    assert area[2] - area[0] == pytest.approx(1.2, abs=0.1)
    assert zoo.interval(zoo.AUC, 100.0) == (100.0, 100.0, 100.0)
