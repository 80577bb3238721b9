"""How right a prompter's labels are: what lies in a region, the figures, and who may be asked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_emoji_clips import STUDIO

from benchmarks.miniatures.emoji import clip_labels
from benchmarks.miniatures.emoji import clips as clips_module
from benchmarks.miniatures.emoji.clip_labels import (
    accuracy,
    labelled_clips,
    labels_and_truth,
    part_inside,
)
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.files import read_json
from tests.unit.alpro_toy import TEXT, VISION, build

pytest.importorskip("av")

COUNTS = {"web": 4, "stills": 1, "tune": 4, "val": 2, "test": 6, "classes": 6}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(clips_module, "studio", lambda: STUDIO)
    made = clips_module.clips(tmp_path, seed=3, **COUNTS)
    monkeypatch.setattr(clip_labels, "clips", lambda root: made)
    return tmp_path


def prompter(root: Path) -> Path:
    """The checkpoint of one that has learned nothing."""
    vocabulary = (root / "vocab.txt").read_text().split()
    text = TEXT | {"vocab_size": len(vocabulary), "max_positions": 64}
    module = build("prompter", vision=VISION | {"image_size": 64}, text=text)
    views = {"_target_": "shared.data.views.recipes.RecipeViews", "size": 64, "test_resize": None}
    views |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "recipes": {}}
    data = {"augmentation": views, "frames": 2, "test_frames": "headtail", "text_rules": "alpro"}
    content: dict[str, Any] = {
        "hyper_parameters": dict(module.hparams), "state_dict": module.state_dict(),
        "vocabulary": vocabulary, "datamodule_hyper_parameters": data,
    }  # fmt: skip
    module.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content, path := root / "prompter.ckpt")
    return path


def entities(root: Path) -> list[str]:
    return [line.split()[0] for line in (root / "unigrams.txt").read_text().splitlines()]


def test_the_part_of_a_drawing_in_a_region_is_that_of_all_frames() -> None:
    region = torch.zeros(64, 64, dtype=torch.bool)
    region[:32] = True
    mover = {"extent": [10, 20], "corners": [[-5, 0], [20, 22], [20, 40]]}
    assert part_inside(mover, [0], region) == 0.5  # the other half is outside of the frame
    assert part_inside(mover, [1], region) == 0.5
    assert part_inside(mover, [1, 2], region) == 0.25


def test_figures_by_hand() -> None:
    """Six entities; the third clip shows none of them, and counts for `kept` alone."""
    labels = torch.tensor([
        [0.9, 0.02, 0.02, 0.02, 0.02, 0.02],
        [0.18, 0.17, 0.17, 0.16, 0.16, 0.16],
        [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.4, 0.3, 0.1, 0.1, 0.06, 0.04],
    ])  # fmt: skip
    there = torch.zeros(4, 6, dtype=torch.bool)
    there[0, 0] = there[1, 0] = there[1, 5] = there[3, 4] = True
    found = accuracy(labels, there, threshold=0.2)
    assert found["top1"] == pytest.approx(200 / 3)
    assert found["top5"] == pytest.approx(100)
    assert found["chance"] == pytest.approx(100 * 4 / 18)
    assert found["kept"] == 75
    assert found["top1_kept"] == 50
    assert accuracy(labels, there, threshold=1.0)["top1_kept"] == 0


def test_what_is_there_is_what_moves_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a region of the whole frame lies what is not cut by its border, by any of its names."""
    whole = torch.ones(COUNTS["test"], 8, 8, dtype=torch.bool)
    monkeypatch.setattr(clip_labels, "random_regions", lambda *_: whole)
    words = entities(root)
    labels, there = labels_and_truth(root, prompter(root), len(words), "test")
    assert labels.shape == there.shape == (COUNTS["test"], len(words))
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(COUNTS["test"]))
    records = read_json(root / "secret" / "clip_records.json")
    for row, clip in zip(there, records["clips"]["test"], strict=True):
        names = {name for m in clip["movers"] for name in records["names"][str(m["concept"])]}
        assert {word for word, is_there in zip(words, row, strict=True) if is_there} == {
            word for word in words if word in names
        }
    monkeypatch.setattr(clip_labels, "random_regions", lambda *_: ~whole)
    assert not labels_and_truth(root, prompter(root), len(words), "test")[1].any()


def test_a_source_tells_the_figures_once_there_is_a_prompter(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(entities(root))
    assert "emoji-clip-labels" not in labelled_clips(root, root / "prompter.ckpt", count)
    path = prompter(root)
    figures = labelled_clips(root, path, count)["emoji-clip-labels"]
    assert 0 <= figures["top1"] <= figures["top5"] <= 100
    assert clip_labels.main([str(root), str(path), "--entities", str(count)]) == 0
    assert f"top5: {figures['top5']:.1f} %" in capsys.readouterr().out
    (root / "prompter.ckpt").write_bytes(b"no weights")
    assert clip_labels.main([str(root), str(path), "--entities", str(count)]) == 2
    assert capsys.readouterr().err.startswith("clip_labels: refused checkpoint")
