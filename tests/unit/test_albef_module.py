"""ALBEF's pre-training and retrieval: what happens in a step, in which order, and what is drawn.

The numbers of a step are those of the golden cases; here is what they do not cover.
"""

from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from methods.albef import official
from methods.albef.controls import LeastSimilarNegatives, MisalignedPairs
from shared.losses.language import IGNORED
from shared.nn.vision_transformer import VisionTransformer
from shared.tasks import image_text_contrast, image_text_matching
from tests.parity.recording import recording
from tests.unit.albef_toy import (
    LENGTH,
    QUEUE,
    SIZE,
    VISION,
    WORDS,
    apart,
    batch,
    given,
    pretraining,
    retrieval,
    trainer,
)

BOTH = pytest.mark.parametrize("build", [pretraining, retrieval])


def at_step(module: Any, step: int) -> Any:
    module._trainer = SimpleNamespace(global_step=step)
    module.log_train = lambda values: None
    return module


def terms(module: Any) -> dict[str, Tensor]:
    """The loss terms of a step."""
    with recording((module, "total_loss")) as calls:
        module.training_step(batch(), 0)
    return calls["total_loss"][0].arguments["terms"]


DRAWS = (image_text_matching, "draw_negatives")


# --- queue, evaluation, alpha ---


@BOTH
def test_the_queue_takes_features_and_identities_and_wraps(build: Any) -> None:
    module, states = build(queue_size=2 * SIZE), []
    queue = module.contrast.queue
    for number in range(3):
        images = [10 * (number + 1) + pair for pair in range(SIZE)]
        at_step(module, number).training_step(batch(number, images), 0)
        states.append((int(queue.pointer), queue["idx"][:, 0].tolist()))
    if build is pretraining:  # pairs of their own
        expected = [[0, 1, 2, 3, *[-100] * 4], [0, 1, 2, 3] * 2, [0, 1, 2, 3] * 2]
    else:
        expected = [[10, 11, 12, 13, *[-100] * 4], [10, 11, 12, 13, 20, 21, 22, 23],
                    [30, 31, 32, 33, 20, 21, 22, 23]]  # fmt: skip
    assert states == list(zip([4, 0, 4], expected, strict=True))
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(2 * SIZE))


@BOTH
def test_evaluation_moves_nothing(build: Any) -> None:
    module = apart(build()).eval()
    before = deepcopy(module.state_dict())
    data = batch(0)
    texts = {"text_image": data["indices"], **data}
    with torch.no_grad():
        module.validation_step(texts, 0)
        module.test_step(texts, 0)
        features = module.predict_step(data, 0)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(SIZE))


@pytest.mark.parametrize(
    ("ramp", "expected"), [(True, [0, 0.1, 0.2, 0.3] + [0.4] * 4), (False, [0.4] * 4)]
)
def test_alpha_rises_within_the_first_epoch(ramp: bool, expected: list[float]) -> None:
    seen: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
            seen.append(float(trainer.callback_metrics["train/alpha"]))

    run = trainer(Watch(), max_epochs=len(expected) // 4, limit_val_batches=0)
    run.fit(retrieval(ramp=ramp, epochs=2), given([batch(n) for n in range(4)]))
    assert seen == pytest.approx(expected)


# --- objectives ---


@pytest.mark.parametrize(
    ("objectives", "idle"),
    [
        (["ita", "itm", "mlm"], []),
        (["itm", "mlm"], ["vision_proj", "text_proj", "temp"]),
        (["ita", "mlm"], ["matching"]),
        (["ita", "itm"], ["word_head"]),
        (["mlm"], ["vision_proj", "text_proj", "temp", "matching"]),
    ],
)
def test_what_is_no_objective_gives_no_gradient(objectives: list[str], idle: list[str]) -> None:
    """But one of 0, so that no parameter is left out in a distributed run."""
    module = pretraining(objectives=objectives)
    with recording((module, "total_loss")) as calls:
        loss = module.training_step(batch(), 0)
    losses = calls["total_loss"][0].arguments["terms"]
    assert losses.keys() == {"loss_ita", "loss_itm", "loss_mlm"}
    torch.testing.assert_close(loss, sum(losses[f"loss_{name}"] for name in objectives))
    loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    for part in ("vision_proj", "text_proj", "temp", "matching", "word_head"):
        of_part = [gradient for name, gradient in gradients.items() if part in name]
        assert any(gradient.any() for gradient in of_part) is (part not in idle), part


def test_a_step_in_which_no_word_is_masked() -> None:
    """The official code gives NaN."""
    module = pretraining(mlm_probability=0.0)
    losses = terms(module)
    assert float(losses["loss_mlm"].detach()) == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_without_distillation_the_copy_predicts_no_words_but_gives_the_keys() -> None:
    module = apart(pretraining(alpha=0.0))
    copy = module.momentum_encoders.module
    with (
        patch.object(copy, "predict_words", side_effect=AssertionError),
        patch.object(copy, "encode_image", wraps=copy.encode_image) as asked,
    ):
        module.training_step(batch(), 0)
    assert asked.called


@BOTH
def test_negatives_of_all_ranks_are_those_of_the_only_one(build: Any) -> None:
    losses = [build(negatives=n).training_step(batch(), 0) for n in ("local", "global")]
    torch.testing.assert_close(*losses)


# --- identities ---


CAPTIONS = [7, 5, 7, 9]  # the first and the third pair show one image


@pytest.mark.parametrize(
    "build", [partial(pretraining, identity="image"), retrieval], ids=["pretraining", "retrieval"]
)
def test_captions_of_an_image_are_positives_and_no_negatives(build: Any) -> None:
    """In the batch and in the queue; official in retrieval, an option in pre-training."""
    module = build()
    module.contrast.queue["idx"][:, 0] = torch.tensor([5, -100, 7, 7, -100, 8, 3, -100])
    with recording((image_text_contrast, "multi_positive_targets")) as made:
        module.training_step(batch(0, CAPTIONS), 0)
    expected = torch.zeros(4, 4 + QUEUE)
    expected[0, [0, 2, 4 + 2, 4 + 3]] = expected[2, [0, 2, 4 + 2, 4 + 3]] = 1 / 4
    expected[1, [1, 4 + 0]] = 1 / 2
    expected[3, 3] = 1
    torch.testing.assert_close(made["multi_positive_targets"][0].result, expected)
    with recording(DRAWS) as calls:
        for step in range(10):
            at_step(module, step).training_step(batch(step, CAPTIONS), 0)
    assert len(calls["draw_negatives"]) == 20
    images = torch.tensor(CAPTIONS)
    for call in calls["draw_negatives"]:
        assert call.arguments["positives"][0].tolist() == [True, False, True, False]
        assert (images != images[call.result]).all()
    assert {i for call in calls["draw_negatives"] for i in call.result.tolist()} == {0, 1, 2, 3}
    assert module.contrast.queue["idx"][:, 0].sort().values.tolist() == sorted(2 * CAPTIONS)


def test_the_control_pairs_each_image_with_another_text() -> None:
    module, control = pretraining(), pretraining()
    control.__class__ = MisalignedPairs
    features = torch.randn(SIZE, 6)
    assert torch.equal(module.contrasted_texts(features), features)
    assert torch.equal(control.contrasted_texts(features), features[[3, 0, 1, 2]])
    assert not torch.isclose(terms(module)["loss_ita"], terms(control)["loss_ita"])


def test_the_control_draws_what_is_least_similar() -> None:
    module, control = pretraining(), LeastSimilarNegatives(**pretraining().hparams)
    assert control.hparams == module.hparams
    positives, draws = torch.eye(SIZE).bool(), torch.full((SIZE, 2), 0.5)
    logits = 100 * torch.eye(SIZE).roll(1, dims=1) - 100 * torch.eye(SIZE).roll(2, dims=1)
    places = torch.arange(SIZE)
    for negatives, shift in ((module, 1), (control, 2)):
        found = negatives.matching.mine(logits, logits, positives, draws)
        assert all(torch.equal(rows, (places + shift) % SIZE) for rows in found)


def test_bad_arguments() -> None:
    for changes, message in [
        ({"identity": "caption"}, "identity must be"),
        ({"objectives": []}, "objectives are of ita, itm and mlm"),
        ({"objectives": ["ita", "itc"]}, "objectives are of ita, itm and mlm"),
        ({"negatives": "all"}, 'negatives must be "local" or "global"'),
        ({"alpha": 1.2}, r"alpha=1\.2 is no weight between 0 and 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            pretraining(**changes)


# --- negatives ---


@BOTH
def test_other_negatives_are_drawn_evenly(build: Any) -> None:
    module = build(hard_negatives=False)
    counts = torch.zeros(SIZE, SIZE)
    with recording(DRAWS) as calls, torch.no_grad():
        for step in range(150):
            draws = at_step(module, step).step_draws("negatives", SIZE, 2)
            logits = torch.randn(2, SIZE, SIZE + QUEUE)
            module.matching.mine(*logits, torch.eye(SIZE).bool(), draws)
    for call in calls["draw_negatives"]:
        torch.testing.assert_close(call.arguments["weights"], (1 - torch.eye(SIZE)) / SIZE)
        counts[torch.arange(SIZE), call.result] += 1
    assert counts.diagonal().sum() == 0
    others = counts[~torch.eye(SIZE).bool()]
    assert float((others - 100).abs().max()) < 35  # 300 draws a row; four standard deviations


# --- what is drawn ---


def test_draws_are_a_function_of_seed_and_step() -> None:
    module, ids = pretraining(mlm_probability=0.5), batch()["input_ids"]
    first = module.mask(ids)
    assert all(torch.equal(a, b) for a, b in zip(module.mask(ids), first, strict=True))
    torch.manual_seed(99)
    assert torch.equal(pretraining(mlm_probability=0.5).mask(ids)[1], first[1])
    at_step(module, 1)
    assert not torch.equal(module.mask(ids)[1], first[1])
    assert not torch.equal(pretraining(mlm_probability=0.5, seed=4).mask(ids)[1], first[1])
    draws = module.step_draws("masks", SIZE, LENGTH), module.step_draws("negatives", SIZE, LENGTH)
    assert not torch.equal(*draws), "masks and negatives are drawn apart"


def test_a_text_is_masked_whatever_stands_beside_it() -> None:
    module, ids = pretraining(mlm_probability=0.5), batch()["input_ids"]
    masked, labels = module.mask(ids)
    others = ids.clone()
    others[1:] = torch.randint(5, WORDS, others[1:].shape)
    found, found_labels = module.mask(others)
    assert torch.equal(found[0], masked[0])
    assert torch.equal(found_labels[0], labels[0])
    assert (labels[ids == 0] == IGNORED).all()
    assert (labels[:, 0] == IGNORED).all()


# --- initial weights ---


@pytest.fixture
def initial(tmp_path: Path) -> dict[str, str]:
    """A ViT of a smaller picture, and a folder of BERT."""
    torch.manual_seed(5)
    vit = VisionTransformer(**VISION | {"image_size": 24})  # type: ignore[arg-type]
    torch.save({"model": vit.state_dict()}, tmp_path / "deit.pth")
    exported = official.export(pretraining()).items()
    state = {
        key.removeprefix("text_encoder."): torch.randn(value.shape)
        for key, value in exported
        if key.startswith("text_encoder.") and "crossattention" not in key and "_ids" not in key
    }
    (tmp_path / "bert").mkdir()
    save_file(state, tmp_path / "bert" / "model.safetensors")
    return {"vision": str(tmp_path / "deit.pth"), "text": str(tmp_path / "bert")}


def test_pretraining_starts_from_deit_and_bert(initial: dict[str, str]) -> None:
    """Word prediction included, as in the official code; the copy starts as the encoders do."""
    module = pretraining(initial=initial)
    before = module.encoders.text_encoder.embeddings.word.weight.clone()
    for stage in ("test", "validate", "predict"):
        module.setup(stage)
    assert torch.equal(module.encoders.text_encoder.embeddings.word.weight, before)
    module.setup("fit")
    vit = torch.load(initial["vision"], weights_only=True)["model"]
    assert torch.equal(module.encoders.visual_encoder.norm.weight, vit["norm.weight"])
    assert module.encoders.visual_encoder.pos_embed.shape == (1, 5, 12)
    assert not torch.equal(module.encoders.text_encoder.embeddings.word.weight, before)
    assert module.encoders.word_head is not None
    assert (module.encoders.word_head.bias != 0).all()
    copies: Any = module.momentum_encoders
    for copy, own in zip(copies.parameters(), module.encoders.parameters(), strict=True):
        assert torch.equal(copy, own)
