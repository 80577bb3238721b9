"""`tenfold predict` with BLIP: texts end with [SEP], pictures get captions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from methods.blip.network import opened
from shared.data.text.wordpiece import WordPiece
from tests.unit import test_predict
from tests.unit.blip_toy import WRITING, build, lively
from tests.unit.test_predict import read, run
from tests.unit.test_predict_texts import COLOURS, VIEWS, folder, view  # noqa: F401

# The words of a file; [DEC] and [ENC] come behind them.
FILE = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "square", "disc", "dog",
    "##gy", "what", "is", "this", "yes", "no", "?",
]  # fmt: skip
ALL = [*FILE, "[DEC]", "[ENC]"]


@pytest.fixture
def checkpoint(folder: Path) -> Any:  # noqa: F811
    """Replaces the folder's checkpoint by one of a kind of BLIP's modules, which it returns."""

    def save(kind: str, **changes: Any) -> Any:
        module = lively(build(kind, **changes)).eval()
        test_predict.save(module, folder / "last.ckpt", VIEWS, vocabulary=ALL)
        content = torch.load(folder / "last.ckpt", weights_only=True)
        content["datamodule_hyper_parameters"]["text_rules"] = "blip"
        torch.save(content, folder / "last.ckpt")
        return module

    return save


def test_texts_end_with_sep(folder: Path, checkpoint: Any) -> None:  # noqa: F811
    module = checkpoint("retrieval")
    output = run(folder, "texts=['A red square.', 'doggy?']", "overlays=1")
    rows = read(output, "scores.csv")
    ids = {"A red square.": [2, 5, 6, 8, 3], "doggy?": [2, 10, 11, 17, 3]}
    assert len(rows) == len(ids) * len(COLOURS)
    for row in rows:
        text = torch.tensor([ids[row["text"]]])
        mask, encoder = torch.ones_like(text), module.encoders.text_encoder
        with torch.inference_mode():
            tokens, image = module.encoders.encode_image(view(folder, row["path"]))
            _, feature = module.encoders.encode_text(text, mask)
            begun = opened(text, module.encoders.enc_id)
            logits = module.matching.logits(encoder, tokens, begun, mask)
        assert float(row["similarity"]) == pytest.approx(float((image * feature).sum()), abs=3e-6)
        match = float(logits.softmax(dim=1)[0, 1])
        assert float(row["match_probability"]) == pytest.approx(match, abs=3e-6)
    assert (output / "overlay_1.png").is_file()


@pytest.mark.parametrize("sample", [False, True])
def test_pictures_get_captions(folder: Path, checkpoint: Any, sample: bool) -> None:  # noqa: F811
    module = checkpoint("captioning", generation={**WRITING, "sample": sample})
    output = run(folder, "batch_size=2")
    rows = read(output, "captions.csv")
    assert [row["path"] for row in rows] == list(COLOURS)
    batch = {
        "images": torch.cat([view(folder, name) for name in COLOURS]),
        "indices": torch.arange(len(COLOURS)),
    }
    with torch.inference_mode():
        ids = module.predict_step(batch, 0)[:, 3:]  # behind [DEC] and two words of the prompt
    expected = WordPiece(FILE, ["[DEC]", "[ENC]"], closed=True).decode(ids)
    assert [row["caption"] for row in rows] == expected
    assert (output / "contact_sheet.png").is_file()
