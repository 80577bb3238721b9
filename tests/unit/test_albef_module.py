"""ALBEF's pre-training and retrieval: what happens in a step, in which order, and what is drawn."""

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
from torch.utils.data import DataLoader

from methods.albef import alignment
from methods.albef.alignment import Alignment
from methods.albef.module import Pretraining
from methods.albef.retrieval import Retrieval
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.losses.language import IGNORED
from shared.nn.vision_transformer import VisionTransformer

SIZE, LENGTH, WORDS, QUEUE = 4, 6, 20, 8
VISION = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2}
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 16,
    "max_positions": LENGTH,
    "dropout": 0.0,
    "cross_attention_from": 1,
}
ALIGNMENT: dict[str, Any] = {
    "vision": VISION, "text": TEXT, "embed_dim": 6, "queue_size": QUEUE, "temperature": 0.07,
    "hard_negatives": True, "negatives": "local", "evaluation": {"k_test": 2}, "seed": 3,
    "encoder_momentum": 0.9, "alpha": 0.4, "ramp": False, "lr": 1e-2, "min_lr": 1e-3,
    "warmup_lr": 1e-2, "warmup_blocks": 0, "epochs": 2, "weight_decay": 0.02,
}  # fmt: skip
TOKENS: dict[str, Any] = {"mlm_probability": 0.3, "cls_id": 2, "mask_id": 4}
BOTH = pytest.mark.parametrize("build", [lambda **c: pretraining(**c), lambda **c: retrieval(**c)])


def pretraining(**changes: Any) -> Pretraining:
    torch.manual_seed(0)
    return Pretraining(**ALIGNMENT | TOKENS | changes)


def retrieval(**changes: Any) -> Retrieval:
    torch.manual_seed(0)
    return Retrieval(**ALIGNMENT | changes)


def batch(number: int = 0, images: list[int] | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    identities = images or list(range(SIZE))
    size = len(identities)
    mask = (torch.arange(LENGTH) < torch.arange(LENGTH, LENGTH - size, -1)[:, None]).long()
    ids = torch.randint(5, WORDS, (size, LENGTH), generator=generator) * mask
    ids[:, 0] = TOKENS["cls_id"]
    return {
        "images": torch.randn(size, 3, 16, 16, generator=generator),
        "indices": torch.arange(size),
        "image_ids": torch.tensor(identities),
        "input_ids": ids,
        "attention_mask": mask,
    }


def at_step(module: Any, step: int) -> None:
    module._trainer = SimpleNamespace(global_step=step)


def fit(module: Any, *callbacks: pl.Callback, epochs: int = 1, steps: int = 2, **more: Any) -> Any:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, log_every_n_steps=1, max_epochs=epochs,
        callbacks=list(callbacks), plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    loader = DataLoader([batch(n) for n in range(steps)], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, **more)
    return trainer


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
    draw = alignment.draw_negatives

    def keep(weights: Tensor, positives: Tensor, uniforms: Tensor) -> Tensor:
        calls.append((weights, positives, draw(weights, positives, uniforms)))
        return calls[-1][2]

    with patch.object(alignment, "draw_negatives", keep):
        yield calls


def apart(module: Any) -> Any:
    """Let the momentum copy differ from the encoders."""
    with torch.no_grad():
        for parameter in module.momentum_encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


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
    torch.testing.assert_close(module.queue.features[:SIZE], image)
    torch.testing.assert_close(module.queue["text"][:SIZE], text)
    assert not any(p.requires_grad for p in module.momentum_encoders.parameters())


@BOTH
def test_the_copy_keeps_its_dropout_in_training(build: Any) -> None:
    def look(_: Any, module: Any) -> tuple[bool, bool]:
        data, copy = batch(0), module.momentum_encoders.module
        texts = data["input_ids"], data["attention_mask"]
        passes = [copy.encode_text(*texts)[0] for _ in range(2)]
        return copy.training, bool(torch.allclose(*passes))

    watch = Watch(look)
    fit(build(text=TEXT | {"dropout": 0.5}), watch, steps=1)
    assert watch.seen == [(True, False)]


@BOTH
def test_the_queue_takes_features_and_identities_and_wraps(build: Any) -> None:
    module = build(queue_size=2 * SIZE)
    states = []
    for number, images in enumerate([[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]]):
        at_step(module, number)
        with patch.object(module, "log_train"):
            module.training_step(batch(number, images), 0)
        states.append((int(module.queue.pointer), module.queue["idx"][:, 0].tolist()))
    if isinstance(module, Pretraining):  # pairs of their own
        expected = [[0, 1, 2, 3, *[-100] * 4], [0, 1, 2, 3] * 2, [0, 1, 2, 3] * 2]
    else:
        expected = [[10, 11, 12, 13, *[-100] * 4], [10, 11, 12, 13, 20, 21, 22, 23],
                    [30, 31, 32, 33, 20, 21, 22, 23]]  # fmt: skip
    assert states == list(zip([4, 0, 4], expected, strict=True))
    norms = module.queue.features.norm(dim=1)
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
    ("given", "clamped"), [(0.9, 0.5), (0.0002, 0.001), (0.3, 0.3), (0.001, 0.001)]
)
def test_only_pretraining_clamps_the_temperature(given: float, clamped: float) -> None:
    """At the start of a step: the clamped one is used, and learned from."""
    for module, expected in [
        (pretraining(temperature=given), clamped),
        (retrieval(temperature=given), given),
    ]:
        module.training_step(batch(), 0).backward()
        assert float(module.temp.detach()) == pytest.approx(expected)
        assert module.temp.grad is not None
        assert module.temp.grad != 0


@BOTH
@pytest.mark.parametrize(
    ("ramp", "expected"), [(True, [0, 0.1, 0.2, 0.3] + [0.4] * 8), (False, [0.4] * 12)]
)
def test_alpha_rises_within_the_first_epoch(build: Any, ramp: bool, expected: list[float]) -> None:
    watch = Watch(lambda trainer, _: float(trainer.callback_metrics["train/alpha"]))
    fit(build(ramp=ramp, epochs=3), watch, epochs=3, steps=4)
    assert watch.seen == pytest.approx(expected)


def test_the_rate_rises_in_stairs_and_then_falls_by_epochs() -> None:
    watch = Watch(lambda trainer, _: [g["lr"] for g in trainer.optimizers[0].param_groups])
    module = retrieval(lr=1.0, min_lr=0.0, warmup_lr=0.2, warmup_blocks=2, warmup_block=2, epochs=2)
    fit(module, watch, epochs=2, steps=6)
    # Stairs of two iterations, of which the first one is one longer; then half a cosine.
    expected = [0.2, 0.2, 0.2, 0.6, 0.6, 1.0] + [0.5] * 6
    assert [rates[0] for rates in watch.seen] == pytest.approx(expected)
    assert all(a == b for a, b in watch.seen), "one rate for both groups"


def test_groups_of_the_optimiser() -> None:
    """Temperature, class token, positions and embeddings are decayed; norms and biases are not."""
    module = pretraining()
    decayed, spared = module.configure_optimizers().param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    found = [{names[id(p)] for p in group["params"]} for group in (decayed, spared)]
    assert [group["weight_decay"] for group in (decayed, spared)] == [0.02, 0.0]
    assert {"temp", "encoders.visual_encoder.cls_token", "encoders.visual_encoder.pos_embed",
            "encoders.text_encoder.embeddings.word.weight"} < found[0]  # fmt: skip
    assert {"encoders.word_head.bias", "encoders.text_encoder.layers.0.norm.weight"} < found[1]
    assert not any("momentum" in name for group in found for name in group)
    assert len(found[0] | found[1]) == sum(p.requires_grad for p in module.parameters())


def test_alpha_is_a_weight() -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.2 is no weight between 0 and 1"):
        retrieval(alpha=1.2)


# --- objectives ---


@pytest.mark.parametrize(
    ("objectives", "idle"),
    [
        (["ita", "itm", "mlm"], []),
        (["itm", "mlm"], ["vision_proj", "text_proj", "temp"]),
        (["ita", "mlm"], ["itm_head"]),
        (["ita", "itm"], ["word_head"]),
        (["mlm"], ["vision_proj", "text_proj", "temp", "itm_head"]),
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
    for part in ("vision_proj", "text_proj", "temp", "itm_head", "word_head"):
        if part not in idle:
            of_part = [p.grad for name, p in module.named_parameters()
                       if part in name and p.requires_grad]  # fmt: skip
            assert any((gradient != 0).any() for gradient in of_part), part  # type: ignore[union-attr]


def test_loss_terms_count_once_each() -> None:
    module = retrieval()
    with terms(module) as losses:
        loss = module.training_step(batch(), 0)
    assert losses.keys() == {"loss_ita", "loss_itm"}
    torch.testing.assert_close(loss, losses["loss_ita"] + losses["loss_itm"])


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


def targets_of(module: Alignment, data: dict[str, Tensor]) -> Tensor:
    """(B, B + Q) of the step."""
    kept: list[Tensor] = []
    make = alignment.multi_positive_targets
    with patch.object(
        alignment, "multi_positive_targets", lambda p: kept.append(make(p)) or kept[0]
    ):
        module.training_step(data, 0)
    return kept[0]


CAPTIONS = [7, 5, 7, 9]  # the first and the third pair show one image


def with_queue(module: Any, identities: list[int]) -> Any:
    module.queue["idx"].copy_(torch.tensor(identities)[:, None])
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
        for step in range(20):
            at_step(module, step)
            with patch.object(module, "log_train"):
                module.training_step(batch(step, CAPTIONS), 0)
    assert len(calls) == 40
    for _, positives, drawn in calls:
        assert positives[0].tolist() == [True, False, True, False]
        images = torch.tensor(CAPTIONS)
        assert (images != images[drawn]).all()
    assert {int(i) for _, _, drawn in calls for i in drawn} == {0, 1, 2, 3}
    assert module.queue["idx"][:, 0].sort().values.tolist() == sorted(2 * CAPTIONS)


def test_in_pretraining_each_pair_is_of_its_own_as_in_the_official_code() -> None:
    module = with_queue(pretraining(), [0, 1, 2, 3, 5, 7, 9, -100])
    found = targets_of(module, batch(0, CAPTIONS))
    torch.testing.assert_close(found, torch.eye(4, 4 + QUEUE))
    with drawing() as calls:
        for step in range(20):
            at_step(module, step)
            with patch.object(module, "log_train"):
                module.training_step(batch(step, CAPTIONS), 0)
    pairs = {(row, int(i)) for _, _, drawn in calls for row, i in enumerate(drawn)}
    assert all(row != other for row, other in pairs)
    assert {(0, 2), (2, 0)} < pairs, "another caption of the image is a negative"


@pytest.mark.parametrize("build", [lambda: pretraining(identity="image"), lambda: retrieval()])
def test_a_batch_of_one_image_is_refused(build: Any) -> None:
    with pytest.raises(ValueError, match=r"show the same image(.|\n)*raise batch_size"):
        build().training_step(batch(0, [7] * SIZE), 0)


def test_a_batch_of_one_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="raise batch_size"):
        pretraining().training_step(batch(0, [7]), 0)


def test_bad_arguments() -> None:
    for changes, message in [
        ({"identity": "caption"}, "identity must be"),
        ({"objectives": []}, "objectives are of ita, itm and mlm"),
        ({"objectives": ["ita", "itc"]}, "objectives are of ita, itm and mlm"),
        ({"negatives": "all"}, 'negatives must be "local" or "global"'),
    ]:
        with pytest.raises(ValueError, match=message):
            pretraining(**changes)


# --- negatives ---


@BOTH
def test_hard_negatives_are_drawn_by_similarity(build: Any) -> None:
    """Images by that to the text, texts by that to the image, of the batch and not of the queue."""
    module = build()
    logits: list[Tensor] = []
    make = alignment.similarity_logits
    with (
        patch.object(
            alignment, "similarity_logits", lambda *a: logits.append(make(*a)) or logits[-1]
        ),
        drawing() as calls,
    ):
        module.training_step(batch(), 0)
    i2t, t2i = logits[2:]  # after the two of the momentum model
    for (weights, positives, _), similarity in zip(calls, (t2i, i2t), strict=True):
        assert torch.equal(positives, torch.eye(SIZE).bool())
        expected = similarity[:, :SIZE].softmax(dim=1).detach()
        expected[torch.eye(SIZE).bool()] = 0
        torch.testing.assert_close(weights, expected)


@BOTH
def test_other_negatives_are_drawn_evenly(build: Any) -> None:
    module = build(hard_negatives=False)
    counts = torch.zeros(SIZE, SIZE)
    with drawing() as calls, torch.no_grad(), patch.object(module, "log_train"):
        for step in range(150):
            at_step(module, step)
            module.mine_negatives(
                torch.randn(SIZE, SIZE + QUEUE), torch.randn(SIZE, SIZE + QUEUE), torch.arange(SIZE)
            )
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
        found, context = module.fuse(images, tokens, mask, (image_of_text, text_of_image))
        assert found.shape == (3 * SIZE, 8)
        rows = [(own, own), (own, image_of_text), (text_of_image, own)]
        for part, (text, image) in zip(found.chunk(3), rows, strict=True):
            picked = encoders.text_encoder.project(images[image])
            expected = encoders.text_encoder(ids[text], mask[text], picked)[:, 0]
            torch.testing.assert_close(part, expected)
        for kept, projected in zip(context, encoders.text_encoder.project(images), strict=True):
            torch.testing.assert_close(kept.key, projected.key)
            torch.testing.assert_close(kept.value, projected.value)


def test_a_gradient_reaches_the_image_that_was_picked() -> None:
    module = pretraining()
    data, own = batch(), torch.arange(SIZE)
    images = module.encoders.encode_image(data["images"])[0].detach().requires_grad_()
    tokens = module.encoders.encode_text(data["input_ids"], data["attention_mask"])[0].detach()
    negatives = torch.full((SIZE,), 2), own
    fused, _ = module.fuse(images, tokens, data["attention_mask"], negatives)
    fused[SIZE].square().sum().backward()  # the first text with its negative image
    assert images.grad is not None
    assert [bool((g != 0).any()) for g in images.grad] == [False, False, True, False]


def test_one_image_is_matched_with_several_texts() -> None:
    module = retrieval().eval()
    data, mask = batch(), batch()["attention_mask"]
    with torch.no_grad():
        images, _ = module.encoders.encode_image(data["images"][:2])
        tokens, _ = module.encoders.encode_text(data["input_ids"], mask)
        found = module.match_logits(images, tokens, mask)
        repeated = images.repeat_interleave(2, dim=0)
        torch.testing.assert_close(found, module.match_logits(repeated, tokens, mask))
        text_encoder = module.encoders.text_encoder
        context, read = text_encoder.project(images), text_encoder.read(tokens, mask)
        torch.testing.assert_close(module.match(context, read, mask), found)


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
    module = pretraining()
    logits = torch.randn(SIZE, SIZE + QUEUE)
    first = module.mine_negatives(logits, logits, torch.arange(SIZE))
    changed = logits.clone()
    changed[1:] = torch.randn(SIZE - 1, SIZE + QUEUE)
    second = module.mine_negatives(changed, changed, torch.arange(SIZE))
    assert first[0][0] == second[0][0]
    assert first[1][0] == second[1][0]


@BOTH
def test_a_run_that_is_continued_is_the_run_that_was_not_interrupted(
    build: Any, tmp_path: Path
) -> None:
    """Masks, negatives, queues and momentum copies: to the last bit."""

    def look(_: Any, module: Any) -> Tensor:
        return module.step_draws("masks", SIZE, LENGTH, 4)

    whole, watch = build(), Watch(look)
    fit(whole, watch, epochs=2)
    half, first = build(), Watch(look)
    fit(half, first, epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    rest, second = build(seed=3), Watch(look)
    fit(rest, second, epochs=2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    drawn = [*first.seen, *second.seen]
    assert len(drawn) == 4
    assert all(torch.equal(a, b) for a, b in zip(watch.seen, drawn, strict=True))
    expected = whole.state_dict()
    for key, value in rest.state_dict().items():
        assert torch.equal(value, expected[key]), key


# --- initial weights ---


@pytest.fixture
def initial(tmp_path: Path) -> dict[str, str]:
    """A ViT of a smaller picture, and a folder of BERT."""
    torch.manual_seed(5)
    vit = VisionTransformer(**VISION | {"image_size": 24})  # type: ignore[arg-type]
    torch.save({"model": vit.state_dict()}, tmp_path / "deit.pth")
    shapes = {
        "embeddings.word_embeddings.weight": (WORDS, 8),
        "embeddings.position_embeddings.weight": (LENGTH, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        **{f"embeddings.LayerNorm.{part}": (8,) for part in ("weight", "bias")},
    }
    for n in range(2):
        for name, outputs, inputs in [
            *((f"attention.self.{part}", 8, 8) for part in ("query", "key", "value")),
            ("attention.output.dense", 8, 8),
            ("intermediate.dense", 16, 8),
            ("output.dense", 8, 16),
        ]:
            shapes[f"encoder.layer.{n}.{name}.weight"] = (outputs, inputs)
            shapes[f"encoder.layer.{n}.{name}.bias"] = (outputs,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            for part in ("weight", "bias"):
                shapes[f"encoder.layer.{n}.{name}.{part}"] = (8,)
    state = {f"bert.{key}": torch.randn(shape) for key, shape in shapes.items()}
    state |= {"cls.predictions.bias": torch.randn(WORDS)}
    state |= {
        f"cls.predictions.transform.LayerNorm.{p}": torch.randn(8) for p in ("weight", "bias")
    }
    state |= {"cls.predictions.transform.dense.weight": torch.randn(8, 8)}
    state |= {"cls.predictions.transform.dense.bias": torch.randn(8)}
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


def test_one_of_the_initial_weights_is_enough(initial: dict[str, str]) -> None:
    module = pretraining(initial=initial | {"text": None})
    before = module.encoders.text_encoder.embeddings.word.weight.clone()
    module.setup("fit")
    assert torch.equal(module.encoders.text_encoder.embeddings.word.weight, before)
    vit = torch.load(initial["vision"], weights_only=True)["model"]
    assert torch.equal(module.encoders.visual_encoder.norm.weight, vit["norm.weight"])
