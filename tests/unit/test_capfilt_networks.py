"""BLIP's modules as the captioner and the filter of CapFilt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.blip import hugging_face, official
from methods.blip.capfilt.networks import ModuleCaptioner, ModuleFilter, load_models
from methods.blip.capfilt.settings import Settings
from methods.blip.filtering import PairFilter
from shared.data.errors import WorkError
from shared.predict.inputs import load_predictor
from tests.unit import blip_toy as blip
from tests.unit import test_predict
from tests.unit.test_blip_predict import ALL, FILE
from tests.unit.test_predict_texts import VIEWS

SETTINGS = Settings(prompt="a red ", max_length=8, min_length=4)
TEXTS = ["A red square.", "doggy?", "a green disc - this", "dog", "no!"]
CLEANED = ["a red square", "doggy?", "a green disc - this", "dog", "no"]
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
    judge = ModuleFilter(path, SETTINGS, "cpu")
    images = torch.randn(3, 3, judge.size, judge.size)
    predictor: Any = load_predictor(Path(path), "cpu")
    pairs = (images[OWNERS], *predictor.tokenizer.batch(CLEANED, 35))
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
    with pytest.raises(WorkError, match="holds Retrieval: give a checkpoint of captioning"):
        ModuleCaptioner(retrieval, SETTINGS, "cpu")
    with pytest.raises(WorkError, match="holds Captioning: give a checkpoint of retrieval"):
        ModuleFilter(captioning, SETTINGS, "cpu")
    with pytest.raises(WorkError, match="another prompt: --prompt 'a red '"):
        ModuleCaptioner(captioning, Settings(), "cpu")
    with pytest.raises(WorkError, match="no room after the prompt"):
        ModuleCaptioner(captioning, Settings(prompt="a red ", max_length=3, min_length=0), "cpu")
    models = load_models(captioning, retrieval, SETTINGS, "cpu")
    assert models.about["filter"]["name"] == "retrieval.ckpt"
    assert models.decoder(None, 100).sizes == (16,)


WIDE: dict[str, Any] = {
    "vision": {"image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "heads": 1},
    "text": {
        "vocab_size": 20, "hidden_size": 128, "num_layers": 2, "num_heads": 2,
        "intermediate_size": 96, "max_positions": 40, "type_vocab_size": 0, "dropout": 0.1,
    },
}  # fmt: skip


@pytest.mark.parametrize("form", ["official", "hugging face"])
def test_official_files_and_folders_do_what_our_checkpoints_do(tmp_path, form):
    words = "\n".join(FILE) + "\n"
    (tmp_path / "vocab.txt").write_text(words)
    modules, paths = {}, {}
    for kind in ("captioning", "retrieval"):
        modules[kind] = blip.lively(blip.build(kind, **WIDE)).eval()
        state = official.export(modules[kind])
        if form == "official":
            paths[kind] = str(tmp_path / f"{kind}.pth")
            torch.save({"model": state}, paths[kind])
        else:
            paths[kind] = str(tmp_path / kind)
            Path(paths[kind]).mkdir()
            Path(paths[kind], "vocab.txt").write_text(words)
            torch.save(
                hugging_face.hugging_face_names(state), Path(paths[kind], "pytorch_model.bin")
            )
    settings = Settings(prompt="a red ", max_length=8, min_length=4)
    if form == "official":
        with pytest.raises(WorkError, match="--vocab names BERT's"):
            load_models(*paths.values(), settings, "cpu")
        settings = replace(settings, vocab=str(tmp_path / "vocab.txt"))
        with pytest.raises(WorkError, match="is no checkpoint of BLIP's captioning"):
            load_models(paths["retrieval"], paths["retrieval"], settings, "cpu")
    models: Any = load_models(*paths.values(), settings, "cpu")
    assert models.decoder(None, 100).sizes == (32,)
    images, keys = torch.randn(3, 3, 32, 32), np.arange(3, dtype=np.uint64)
    writer, judge = models.captioner, models.filter
    assert {writer.module.training, judge.module.training} == {False}
    with torch.inference_mode():
        written, scores = writer.write(images, keys), judge.score(images, TEXTS, OWNERS)
        pairs = (images[OWNERS], *judge.tokenizer.batch(CLEANED, 35))
        expected = PairFilter(modules["retrieval"]).probabilities(*pairs)
        writer.module = modules["captioning"]
        assert written == writer.write(images, keys)
    torch.testing.assert_close(scores, expected)
