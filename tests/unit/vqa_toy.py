"""A toy of visual question answering: plain pictures, asked for their colour."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.data.image_text.vqa import VQAData
from tests.unit.views_toy import plain_views

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "light grey": (200,) * 3}
WORDS = ["what", "colour", "is", "it", "the", "red", "green", "blue", "light", "grey", "dark"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
ANSWERS = ["red", "light grey", "blue", "dark grey", "green"]


def entries(count: int = 8) -> list[dict[str, Any]]:
    names = list(COLOURS)
    return [
        {
            "dataset": "vqa",
            "image": f"{names[i % 4].split()[0]}.png",
            "question": "What colour is it?" if i % 2 else "Is it the colour?",
            "question_id": 100 + i,
            "answer": [names[i % 4]] * 7 + ["dark grey"] * 3,
            "answer_type": "other",
        }
        for i in range(count)
    ]


def write(root: Path, **splits: list[dict[str, Any]]) -> None:
    """Pictures, vocabulary, answer list and annotations."""
    for name, colour in COLOURS.items():
        picture = np.full((16, 16, 3), colour, np.uint8)
        Image.fromarray(picture).save(root / f"{name.split()[0]}.png")
    (root / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (root / "answer_list.json").write_text(json.dumps(ANSWERS))
    for split, content in splits.items():
        (root / f"{split}.json").write_text(json.dumps(content))


def data(root: Path, **changes: Any) -> VQAData:
    splits = [name for name in ("train", "val", "test") if (root / f"{name}.json").exists()]
    arguments: dict[str, Any] = {
        "files": {name: str(root / f"{name}.json") for name in splits},
        "image_root": str(root),
        "vocab": str(root / "vocab.txt"),
        "answer_list": str(root / "answer_list.json"),
        "augmentation": plain_views(16, 0.5, 0.5, {"op": "flip"}),
        "batch_size": 4,
        "eval_batch_size": 3,
        "val_split": "val" if "val" in splits else None,
        "test_split": "test" if "test" in splits else None,
    }
    return VQAData(**arguments | changes)
