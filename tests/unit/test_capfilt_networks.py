"""BLIP's modules as the captioner and the filter of CapFilt."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

blip = pytest.importorskip("tests.unit.blip_toy", reason="BLIP's modules are not here")

from methods.blip.filtering import PairFilter  # noqa: E402
from tests.unit.test_blip_predict import ALL  # noqa: E402

from methods.blip.capfilt.models import load_models  # noqa: E402
from methods.blip.capfilt.networks import ModuleCaptioner, ModuleFilter  # noqa: E402
from methods.blip.capfilt.settings import CapFiltError, Settings  # noqa: E402
from shared.predict.inputs import load_predictor  # noqa: E402
from tests.unit import test_predict  # noqa: E402
from tests.unit.test_predict_texts import VIEWS  # noqa: E402

SETTINGS = Settings(prompt="a red ", max_length=8, min_length=4)
TEXTS = ["A red square.", "doggy?", "a green disc - this", "dog", "no!"]
OWNERS = torch.tensor([0, 0, 1, 2, 2])


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """Saves a toy of a kind with larger weights, and returns the checkpoint's path."""

    def save(kind: str, **changes: Any) -> str:
        path = tmp_path / f"{kind}.ckpt"
        module = blip.lively(blip.build(kind, **changes)).eval()
        test_predict.save(module, path, VIEWS, vocabulary=ALL)
        content = torch.load(path, weights_only=True)
        content["datamodule_hyper_parameters"]["text_rules"] = "blip"
        torch.save(content, path)
        return str(path)

    return save


def test_the_filter_scores_as_blips_filter_with_enc_in_front(saved):
    path = saved("retrieval")
    judge = ModuleFilter(path, "cpu")
    images = torch.randn(3, 3, judge.size, judge.size)
    predictor: Any = load_predictor(Path(path), "cpu")
    cleaned = ["a red square", "doggy?", "a green disc - this", "dog", "no"]
    pairs = (images[OWNERS], *predictor.tokenizer.batch(cleaned, 35))
    with torch.inference_mode():
        scores = judge.score(images, TEXTS, OWNERS)
        expected = PairFilter(predictor.module).probabilities(*pairs)
        official = PairFilter(predictor.module, enc_token=False).probabilities(*pairs)
    torch.testing.assert_close(scores, expected)
    assert (scores - official).abs().max() > 1e-3


def test_a_caption_depends_on_its_own_image_and_key_alone(saved):
    writer = ModuleCaptioner(saved("captioning"), SETTINGS, "cpu")
    images = torch.randn(6, 3, writer.size, writer.size)
    keys = np.arange(6, dtype=np.uint64) * np.uint64(7919)
    with torch.inference_mode():
        together = writer.write(images, keys)
        alone = [writer.write(images[n : n + 1], keys[n : n + 1])[0] for n in range(6)]
        others = writer.write(images, keys + np.uint64(1))
    assert together == alone != others
    assert not any(text.startswith("a red a red") for text in together)


def test_beams_draw_nothing(saved):
    settings = Settings(prompt="a red ", max_length=8, min_length=4, beams=3)
    writer = ModuleCaptioner(saved("captioning"), settings, "cpu")
    images = torch.randn(2, 3, writer.size, writer.size)
    texts = [writer.write(images, np.full(2, key, np.uint64)) for key in (1, 2)]
    assert texts[0] == texts[1]


def test_other_checkpoints_and_prompts_are_refused(saved, tmp_path):
    captioning, retrieval = saved("captioning"), saved("retrieval")
    with pytest.raises(CapFiltError, match="holds Retrieval: give a checkpoint of captioning"):
        ModuleCaptioner(retrieval, SETTINGS, "cpu")
    with pytest.raises(CapFiltError, match="holds Captioning: give a checkpoint of retrieval"):
        ModuleFilter(captioning, "cpu")
    with pytest.raises(CapFiltError, match="another prompt: --prompt 'a red '"):
        ModuleCaptioner(captioning, Settings(), "cpu")
    with pytest.raises(CapFiltError, match="no room after the prompt"):
        ModuleCaptioner(captioning, Settings(prompt="a red ", max_length=3), "cpu")
    models = load_models(captioning, retrieval, SETTINGS, "cpu")
    assert models.about["filter"]["name"] == "retrieval.ckpt"
    assert models.decoder(None, 100).sizes == (16,)
