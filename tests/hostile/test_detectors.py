"""Detectors of strangers through `tenfold predict`, refused before they fill the memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shared.checkpoints.reading import load_checkpoint
from tests.hostile.damages import put
from tests.hostile.test_checkpoints import predicts
from tests.unit.test_predict_detections import entries, folder  # noqa: F401

DATA, DETECTOR = "datamodule_hyper_parameters", "hyper_parameters.detector"
WRONG: dict[str, tuple[str, Any]] = {
    "a large side": (f"{DATA}.eval_resizing.short", [10**6]),
    "a side that is a text": (f"{DATA}.eval_resizing.short", ["id"]),
    "no side": (f"{DATA}.eval_resizing.short", []),
    "half a pixel": (f"{DATA}.eval_resizing.long", 31.5),
    "an unknown argument": (f"{DATA}.eval_resizing.path", "/etc/passwd"),
    "padding that fills memory": (f"{DATA}.preparation.size_divisor", 1 << 40),
    "division by zero": (f"{DATA}.preparation.std", [0.0] * 3),
    "no colours": (f"{DATA}.preparation.mean", []),
    "a preparation that is a list": (f"{DATA}.preparation", [1]),
    "proposals that fill memory": (f"{DETECTOR}.proposals.test.kept", 10**9),
    "masks that fill memory": (f"{DETECTOR}.mask_head.resolution", 10**6),
    "ids that are texts": ("category_ids", ["1", "2", "3", "4"]),
    "ids of other classes": ("category_ids", [1]),
}


@pytest.mark.parametrize("name", WRONG)
def test_sizes_and_kinds(folder: Path, capsys, name: str) -> None:  # noqa: F811
    changed = load_checkpoint(folder / "last.ckpt")
    put(changed, *WRONG[name])
    torch.save(changed, folder / "last.ckpt")
    status, said = predicts(folder, capsys)
    assert status == 2, said
    assert said.count("\n") == 1


def test_names_are_shown_as_text(folder: Path, capsys) -> None:  # noqa: F811
    changed = load_checkpoint(folder / "last.ckpt")
    changed["class_names"] = ["</script>", "\x1b[2J", "\u202e", "n" * 100_000]
    torch.save(changed, folder / "last.ckpt")
    status, said = predicts(folder, capsys, "min_score=0.1", "sheet_images=2")
    assert status == 0, said
    assert max(len(row["category"]) for row in entries(folder / "out")) <= 200
