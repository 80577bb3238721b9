"""Tiny BLIP checkpoints of each task, whose words and answers are hostile to a page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.unit import pb_ovd_toy, test_predict
from tests.unit.blip_toy import BOS, build, lively
from tests.unit.test_predict_detections import DATA
from tests.unit.test_predict_texts import VIEWS

EVIL = "<img src=x onerror=alert(1)>"
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "square", "disc", "dog",
    "##gy", "what", "is", "this", "yes", "**no**", EVIL, "[DEC]", "[ENC]",
]  # fmt: skip
ANSWERS = {EVIL: [BOS, VOCABULARY.index(EVIL), 3]}
KINDS: dict[str, dict[str, Any]] = {
    "captioning": {"prompt_ids": [5]},
    "vqa": {"answers": ANSWERS, "k_test": 1},
    "retrieval": {},
}


def write_checkpoint(path: Path, kind: str) -> Path:
    """A checkpoint of a kind of BLIP's modules; a captioner says little but `EVIL`."""
    module = lively(build(kind, **KINDS[kind])).eval()
    if kind == "captioning":
        with torch.no_grad():
            module.decoder.head.bias[VOCABULARY.index(EVIL)] += 30
    test_predict.save(module, path, VIEWS, vocabulary=VOCABULARY)
    content = torch.load(path, weights_only=True)
    content["datamodule_hyper_parameters"]["text_rules"] = "blip"
    torch.save(content, path)
    return path


def write_detector(folder: Path) -> tuple[Path, Path]:
    """A detector by words, and vectors of two names so long that it is sure of one or the other."""
    test_predict.save(pb_ovd_toy.detector().eval(), folder / "detector.ckpt", None)
    content = torch.load(folder / "detector.ckpt", weights_only=True)
    content |= {"datamodule_hyper_parameters": DATA, "class_names": list("abcd")}
    torch.save(content, folder / "detector.ckpt")
    vector = 1000 * pb_ovd_toy.texts(1)[1]
    names = {EVIL: vector.tolist(), "thing": (-vector).tolist()}
    (folder / "names.json").write_text(json.dumps(names))
    return folder / "detector.ckpt", folder / "names.json"


def write_pictures(folder: Path) -> Path:
    """A folder of three pictures with hostile names, one below, beside what is no picture."""
    names = ["red.png", f"{EVIL.replace('/', '')}.png", "below/**bold**\u202egpj.png"]
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        pixels[:, :, number] = 220
        Image.fromarray(pixels).save(path)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder
