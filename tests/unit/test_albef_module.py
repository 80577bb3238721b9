"""ALBEF's pre-training and retrieval: what happens in a step, in which order, and what is drawn.

The numbers of a step are those of the golden cases; here is what they do not cover.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
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
from methods.albef.controls import MisalignedPairs
from shared.losses.language import IGNORED
from shared.nn.vision_transformer import VisionTransformer
from shared.tasks import image_text_contrast, image_text_matching
from shared.tasks.image_text_matching import ImageTextMatching
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


def at_step(module: Any, step: int) -> None:
    module._trainer = SimpleNamespace(global_step=step)


def fit(module: Any, *callbacks: pl.Callback, epochs: int = 1, steps: int = 2, **more: Any) -> Any:
    run = trainer(*callbacks, max_epochs=epochs, limit_val_batches=0)
    run.fit(module, given([batch(n) for n in range(steps)]), **more)
    return run


class Watch(pl.Callback):
    """What `look` sees of the module after each batch."""

    def __init__(self, look: Callable[[pl.Trainer, Any], Any]):
        self.look, self.seen = look, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
        self.seen.append(self.look(trainer, module))


@contextmanager
def terms(module: Any) -> Iterator[dict[str, Tensor]]:
    """The loss terms of the last step."""
    kept: dict[str, Tensor] = {}
    total = type(module).total_loss

    def keep(losses: dict[str, Tensor], *rest: Any) -> Tensor:
        kept.update(losses)
        return total(module, losses, *rest)

    with patch.object(module, "total_loss", keep):
        yield kept


@contextmanager
def drawing() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """(weights, positives, what was drawn) of every draw of negatives."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    draw = image_text_matching.draw_negatives

    def keep(weights: Tensor, positives: Tensor, uniforms: Tensor) -> Tensor:
        calls.append((weights, positives, draw(weights, positives, uniforms)))
        return calls[-1][2]

    with patch.object(image_text_matching, "draw_negatives", keep):
        yield calls


# --- the momentum model ---


@BOTH
def test_the_copy_moves_before_the_optimisers_step_and_before_it_teaches(build: Any) -> None:
    module = apart(build())
    before = deepcopy(module)
    networks = before.momentum_encoders, before.encoders
    pairs = zip(*(network.parameters() for network in networks), strict=True)
    expected = [torch.lerp(copy, own, 0.1).detach() for copy, own in pairs]
    fit(module, steps=1)
    for found, wanted in zip(module.momentum_encoders.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert not torch.equal(module.encoders.vision_proj.weight, before.encoders.vision_proj.weight)
    # What was queued is what the copy that has moved makes of the batch.
    data = batch(0)
    with torch.no_grad():
        image = module.momentum_encoders.module.encode_image(data["images"])[1]
        text = module.momentum_encoders.module.encode_text(
            data["input_ids"], data["attention_mask"]
        )[1]
    torch.testing.assert_close(module.contrast.queue.features[:SIZE], image)
    torch.testing.assert_close(module.contrast.queue["text"][:SIZE], text)
    assert not any(p.requires_grad for p in module.momentum_encoders.parameters())


@BOTH
def test_the_queue_takes_features_and_identities_and_wraps(build: Any) -> None:
    module = build(queue_size=2 * SIZE)
    states = []
    for number, images in enumerate([[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]]):
        at_step(module, number)
        with patch.object(module, "log_train"):
            module.training_step(batch(number, images), 0)
        states.append(
            (int(module.contrast.queue.pointer), module.contrast.queue["idx"][:, 0].tolist())
        )
    if build is pretraining:  # pairs of their own
        expected = [[0, 1, 2, 3, *[-100] * 4], [0, 1, 2, 3] * 2, [0, 1, 2, 3] * 2]
    else:
        expected = [[10, 11, 12, 13, *[-100] * 4], [10, 11, 12, 13, 20, 21, 22, 23],
                    [30, 31, 32, 33, 20, 21, 22, 23]]  # fmt: skip
    assert states == list(zip([4, 0, 4], expected, strict=True))
    norms = module.contrast.queue.features.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(2 * SIZE))


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


# --- temperature, alpha, rate ---


@pytest.mark.parametrize(
    ("ramp", "expected"), [(True, [0, 0.1, 0.2, 0.3] + [0.4] * 4), (False, [0.4] * 4)]
)
def test_alpha_rises_within_the_first_epoch(ramp: bool, expected: list[float]) -> None:
    watch = Watch(lambda trainer, _: float(trainer.callback_metrics["train/alpha"]))
    fit(retrieval(ramp=ramp, epochs=2), watch, epochs=len(expected) // 4, steps=4)
    assert watch.seen == pytest.approx(expected)


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
    with terms(module) as losses:
        loss = module.training_step(batch(), 0)
    assert losses.keys() == {"loss_ita", "loss_itm", "loss_mlm"}
    torch.testing.assert_close(loss, sum(losses[f"loss_{name}"] for name in objectives))
    loss.backward()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        if any(part in name for part in idle):
            assert (parameter.grad == 0).all(), name
    for part in ("vision_proj", "text_proj", "temp", "matching", "word_head"):
        if part not in idle:
            of_part = [p.grad for name, p in module.named_parameters()
                       if part in name and p.requires_grad]  # fmt: skip
            assert any((gradient != 0).any() for gradient in of_part), part  # type: ignore[union-attr]


def test_a_step_in_which_no_word_is_masked() -> None:
    """The official code gives NaN."""
    module = pretraining(mlm_probability=0.0)
    with terms(module) as losses:
        loss = module.training_step(batch(), 0)
    assert float(losses["loss_mlm"].detach()) == 0
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_without_distillation_the_copy_predicts_no_words_but_gives_the_keys() -> None:
    module = apart(pretraining(alpha=0.0))
    copy: Any = module.momentum_encoders.module
    with (
        patch.object(copy, "predict_words", side_effect=AssertionError),
        patch.object(copy, "encode_image", wraps=copy.encode_image) as asked,
        terms(module) as losses,
    ):
        module.training_step(batch(), 0)
    assert asked.called
    # With alpha it does change the targets of both losses.
    other = apart(pretraining(alpha=0.4))
    with terms(other) as softened:
        other.training_step(batch(), 0)
    for name in ("loss_ita", "loss_mlm"):
        assert not torch.isclose(losses[name], softened[name], rtol=1e-6)
    torch.testing.assert_close(losses["loss_itm"], softened["loss_itm"])


@BOTH
def test_negatives_of_all_ranks_are_those_of_the_only_one(build: Any) -> None:
    losses = [build(negatives=n).training_step(batch(), 0) for n in ("local", "global")]
    torch.testing.assert_close(*losses)


# --- identities ---


def targets_of(module: Any, data: dict[str, Tensor]) -> Tensor:
    """(B, B + Q) of the step."""
    kept: list[Tensor] = []
    make = image_text_contrast.multi_positive_targets
    with patch.object(
        image_text_contrast, "multi_positive_targets", lambda p: kept.append(make(p)) or kept[0]
    ):
        module.training_step(data, 0)
    return kept[0]


CAPTIONS = [7, 5, 7, 9]  # the first and the third pair show one image


def with_queue(module: Any, identities: list[int]) -> Any:
    module.contrast.queue["idx"].copy_(torch.tensor(identities)[:, None])
    return module


@pytest.mark.parametrize(
    "build", [lambda **c: pretraining(identity="image", **c), lambda **c: retrieval(**c)]
)
def test_captions_of_an_image_are_positives_and_no_negatives(build: Any) -> None:
    """In the batch and in the queue; official in retrieval, an option in pre-training."""
    module = with_queue(build(), [5, -100, 7, 7, -100, 8, 3, -100])
    found = targets_of(module, batch(0, CAPTIONS))
    expected = torch.zeros(4, 4 + QUEUE)
    expected[0, [0, 2, 4 + 2, 4 + 3]] = expected[2, [0, 2, 4 + 2, 4 + 3]] = 1 / 4
    expected[1, [1, 4 + 0]] = 1 / 2
    expected[3, 3] = 1
    torch.testing.assert_close(found, expected)
    with drawing() as calls:
        for step in range(10):
            at_step(module, step)
            with patch.object(module, "log_train"):
                module.training_step(batch(step, CAPTIONS), 0)
    assert len(calls) == 20
    for _, positives, drawn in calls:
        assert positives[0].tolist() == [True, False, True, False]
        images = torch.tensor(CAPTIONS)
        assert (images != images[drawn]).all()
    assert {int(i) for _, _, drawn in calls for i in drawn} == {0, 1, 2, 3}
    assert module.contrast.queue["idx"][:, 0].sort().values.tolist() == sorted(2 * CAPTIONS)


@pytest.mark.parametrize("build", [lambda: pretraining(identity="image"), lambda: retrieval()])
def test_a_batch_of_one_image_is_refused(build: Any) -> None:
    with pytest.raises(ValueError, match=r"show the same image(.|\n)*raise batch_size"):
        build().training_step(batch(0, [7] * SIZE), 0)


def test_the_control_pairs_each_image_with_another_text() -> None:
    module, control = pretraining(), pretraining()
    control.__class__ = MisalignedPairs
    features = torch.randn(SIZE, 6)
    assert torch.equal(module.contrasted_texts(features), features)
    assert torch.equal(control.contrasted_texts(features), features[[3, 0, 1, 2]])
    with terms(module) as right, terms(control) as wrong:
        for each in (module, control):
            each.training_step(batch(), 0)
    assert not torch.isclose(right["loss_ita"], wrong["loss_ita"])


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
    with drawing() as calls, torch.no_grad(), patch.object(module, "log_train"):
        for step in range(150):
            at_step(module, step)
            logits = torch.randn(2, SIZE, SIZE + QUEUE)
            draws = module.step_draws("negatives", SIZE, 2)
            module.matching.mine(*logits, torch.eye(SIZE).bool(), draws)
    for weights, _, drawn in calls:
        expected = (1 - torch.eye(SIZE)) / SIZE
        torch.testing.assert_close(weights, expected)
        counts[torch.arange(SIZE), drawn] += 1
    assert counts.diagonal().sum() == 0
    others = counts[~torch.eye(SIZE).bool()]
    assert float((others - 100).abs().max()) < 35  # 300 draws a row; four standard deviations


def test_pairs_are_fused_in_order() -> None:
    """Own pairs, texts with negative images, negative texts with images, as if each went through
    all layers alone; and the images' keys serve other texts."""
    module = pretraining().eval()
    data, encoders = batch(), module.encoders
    ids, mask = data["input_ids"], data["attention_mask"]
    own, image_of_text, text_of_image = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0], [3, 0, 0, 1]])
    with torch.no_grad():
        images, _ = encoders.encode_image(data["images"])
        tokens, _ = encoders.encode_text(ids, mask)
        negatives = image_of_text, text_of_image
        found, context = module.matching.fuse(
            encoders.text_encoder, images, tokens, mask, negatives
        )
        assert found.shape == (3 * SIZE, 8)
        rows = [(own, own), (own, image_of_text), (text_of_image, own)]
        for part, (text, image) in zip(found.chunk(3), rows, strict=True):
            picked = encoders.text_encoder.project(images[image])
            expected = encoders.text_encoder(ids[text], mask[text], picked)[:, 0]
            torch.testing.assert_close(part, expected)
        for kept, projected in zip(context, encoders.text_encoder.project(images), strict=True):
            torch.testing.assert_close(kept.key, projected.key)
            torch.testing.assert_close(kept.value, projected.value)


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


def test_a_draw_of_negatives_is_a_pairs_own() -> None:
    """Of pairs alike in all else: another pair's logits change nothing."""
    matching, positives = ImageTextMatching(8, True, "local"), torch.eye(SIZE).bool()
    draws, logits = torch.rand(SIZE, 2), torch.randn(SIZE, SIZE + QUEUE)
    first = matching.mine(logits, logits, positives, draws)
    changed = logits.clone()
    changed[1:] = torch.randn(SIZE - 1, SIZE + QUEUE)
    second = matching.mine(changed, changed, positives, draws)
    assert first[0][0] == second[0][0]
    assert first[1][0] == second[1][0]


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
