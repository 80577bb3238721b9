"""ALBEF's question answering: the loss by hand, ranking by brute force, and whole runs."""

import json
from math import log
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from methods.albef.vqa import VQA, answer_sums, token_losses
from shared.checkpoints.reading import load_module
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.nn.text_transformer import TextTransformer
from tests.unit import vqa_toy

VISION = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2}
TEXT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 24,
    "max_positions": 24,
    "dropout": 0.0,
    "cross_attention_from": 1,
}
SCHEDULE = {
    "lr": 1e-3,
    "min_lr": 1e-3,
    "warmup_lr": 1e-3,
    "warmup_blocks": 0,
    "epochs": 1,
    "weight_decay": 0.0,
    "encoder_momentum": 0.9,
    "alpha": 0.4,
    "ramp": False,
}
# Three begin with the same token; lengths differ.
ANSWERS = {
    "fbc": [2, 10, 6, 7, 3],
    "ab": [2, 5, 6, 3],
    "abc": [2, 5, 6, 7, 3],
    "gc": [2, 11, 7, 3],
    "a": [2, 5, 3],
    "d": [2, 8, 3],
    "e": [2, 9, 3],
}


def vqa(**changes: Any) -> VQA:
    torch.manual_seed(0)
    options: dict[str, Any] = {"decoder_layers": 2, "k_test": 6, "answers": ANSWERS}
    module = VQA(VISION, TEXT, **options | SCHEDULE | changes)
    with torch.no_grad():  # larger weights, so that nothing is nearly uniform
        for parameter in module.encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for parameter in module.momentum_encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def questions() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randn(3, 3, 16, 16, generator=generator),
        "input_ids": torch.tensor([[2, 10, 11, 12], [2, 13, 0, 0], [2, 14, 15, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
    }


def training_batch() -> dict[str, Tensor]:
    return questions() | {
        "indices": torch.arange(3),
        "answer_ids": torch.tensor([[2, 5, 3, 0], [2, 6, 7, 3], [2, 8, 3, 0], [2, 9, 5, 3]]),
        "answer_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]),
        "answer_counts": torch.tensor([1, 2, 1]),
        "answer_weights": torch.tensor([1.0, 0.6, 0.4, 0.5]),
    }


def answer_log_probs(network: Any, batch: dict, question: int, ids: list[int]) -> Tensor:
    """Log-probabilities (M - 1, V) of what follows each token, alone and without any padding."""
    length = int(batch["attention_mask"][question].sum())
    asked = batch["input_ids"][question : question + 1, :length]
    image = network.visual_encoder(batch["images"][question : question + 1])
    encoder, decoder = network.text_encoder, network.text_decoder
    states = encoder(asked, torch.ones_like(asked), encoder.project(image))
    written = torch.tensor([ids])
    hidden = decoder(written, torch.ones_like(written), decoder.project(states), causal=True)
    return network.word_head(hidden[0, :-1], decoder.embeddings.word).log_softmax(dim=-1)


# --- the loss ---


def test_token_losses_by_hand() -> None:
    logits = torch.tensor([[0.0, log(3.0)], [log(4.0), 0.0]])  # probabilities 1/4, 3/4; 4/5, 1/5
    teacher = torch.tensor([[0.0, 0.0], [0.0, log(9.0)]])  # 1/2, 1/2; 1/10, 9/10
    targets = torch.tensor([1, 0])
    hard = torch.tensor([-log(3 / 4), -log(4 / 5)])
    torch.testing.assert_close(token_losses(logits, targets), hard)
    soft = torch.tensor([-(log(1 / 4) + log(3 / 4)) / 2, -(0.1 * log(4 / 5) + 0.9 * log(1 / 5))])
    both = token_losses(logits, targets, teacher, alpha=0.4)
    torch.testing.assert_close(both, 0.6 * hard + 0.4 * soft)


def test_losses_are_taken_in_full_precision() -> None:
    logits, teacher = torch.randn(2, 3, 50).unbind()
    arguments = (logits, torch.tensor([0, 1, 2]), teacher, 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = token_losses(*arguments)
    assert torch.equal(rough, token_losses(*arguments))


def test_no_gradient_reaches_the_teacher() -> None:
    logits, teacher = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    token_losses(logits, torch.tensor([0, 1, 2]), teacher, 0.5).sum().backward()
    assert logits.grad is not None
    assert teacher.grad is None


def test_answer_sums() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    sums = answer_sums(torch.tensor([1.0, 2.0, 10.0, 20.0, 30.0]), mask)
    assert sums.tolist() == [3.0, 0.0, 60.0]


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_loss_is_the_weighted_sum_over_answers_per_image(alpha: float) -> None:
    """Against one answer at a time: padding of questions and answers has no influence."""
    module, batch = vqa(alpha=alpha), training_batch()
    loss = module.training_step(batch, 0)
    teacher = module.momentum_encoders.module  # as it is after its update
    expected = torch.zeros(())
    rows = zip(batch["answer_ids"], batch["answer_mask"], batch["answer_weights"], strict=True)
    for question, (ids, mask, weight) in zip([0, 1, 1, 2], rows, strict=True):
        written = ids[mask.bool()].tolist()
        log_probs = answer_log_probs(module.encoders, batch, question, written)
        soft = answer_log_probs(teacher, batch, question, written).exp()
        hard = -log_probs[range(len(written) - 1), written[1:]].sum()
        kd = -(soft * log_probs).sum()
        expected = expected + weight * ((1 - alpha) * hard + alpha * kd)
    torch.testing.assert_close(loss, expected / 3)


def test_the_momentum_model_moves_before_it_teaches() -> None:
    module = vqa()
    before = [p.clone() for p in module.momentum_encoders.parameters()]
    seen: list[Tensor] = []
    teacher = module.momentum_encoders.module
    teacher.text_decoder.register_forward_pre_hook(
        lambda *_: seen.append(teacher.word_head.bias.detach().clone())
    )
    module.training_step(training_batch(), 0)
    pairs = zip(
        before, module.momentum_encoders.parameters(), module.encoders.parameters(), strict=True
    )
    for old, new, online in pairs:
        torch.testing.assert_close(new, 0.9 * old + 0.1 * online)
    assert torch.equal(seen[0], teacher.word_head.bias)


def test_without_distillation_the_momentum_model_moves_but_is_not_asked() -> None:
    module = vqa(alpha=0.0)
    module.momentum_encoders.module.text_decoder.register_forward_pre_hook(
        lambda *_: pytest.fail("asked")
    )
    before = next(module.momentum_encoders.parameters()).clone()
    module.training_step(training_batch(), 0)
    assert not torch.equal(before, next(module.momentum_encoders.parameters()))


def test_every_parameter_of_the_network_has_a_gradient() -> None:
    module = vqa()
    module.training_step(training_batch(), 0).backward()
    lacking = [name for name, p in module.encoders.named_parameters() if p.grad is None]
    assert not lacking
    assert all(p.grad is None for p in module.momentum_encoders.parameters())


# --- the text transformer's masked context ---


def test_padding_of_a_context_is_not_seen() -> None:
    torch.manual_seed(0)
    decoder = TextTransformer(**TEXT | {"cross_attention_from": 0}, context_width=6)
    context, ids = torch.randn(2, 5, 6), torch.tensor([[2, 5], [2, 6], [2, 7], [2, 8]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    ones = torch.ones_like(ids)

    masked = decoder.project(context, mask=mask)
    shared = decoder(ids, ones, masked)
    changed = context.clone()
    changed[0, 3:] = 100.0
    torch.testing.assert_close(decoder(ids, ones, decoder.project(changed, mask=mask)), shared)
    torch.testing.assert_close(
        decoder(ids[:2], ones[:2], decoder.project(context[:1, :3])), shared[:2]
    )
    assert not torch.allclose(decoder(ids, ones, decoder.project(context)), shared)
    rows = [kv.rows(torch.tensor([0, 0, 1, 1])) for kv in masked]
    torch.testing.assert_close(decoder(ids, ones, rows), shared)
    order = torch.tensor([3, 0])
    picked = [kv.rows(torch.tensor([1, 0])) for kv in masked]
    torch.testing.assert_close(decoder(ids[order], ones[order], picked), shared[order])


# --- ranking ---


def brute_force(module: VQA, batch: dict[str, Tensor], question: int) -> dict[str, tuple]:
    """Answer -> log-probabilities of its first token and of all its tokens."""
    found = {}
    for text, ids in ANSWERS.items():
        log_probs = answer_log_probs(module.encoders, batch, question, ids)
        own = log_probs[range(len(ids) - 1), ids[1:]]
        found[text] = (float(own[0]), float(own.sum()))
    return found


@pytest.mark.parametrize(("score", "first_counts"), [("official", 1), ("corrected", 0)])
@pytest.mark.parametrize("candidates_per_pass", [1, 7, 1000])
def test_ranking_equals_brute_force(
    score: str, first_counts: int, candidates_per_pass: int
) -> None:
    module = vqa(score=score, candidates_per_pass=candidates_per_pass).eval()
    batch = questions()
    with torch.no_grad():
        candidates, scores = module.rank(
            module.encoders.read(*(batch[k] for k in ("images", "input_ids", "attention_mask")))
        )
        probabilities = module.predict_step(batch, 0)
        best = module.answer(batch)
        for question in range(3):
            truth = brute_force(module, batch, question)
            chosen = [module.answers[i] for i in candidates[question].tolist()]
            first = [truth[text][0] for text in chosen]
            assert first == sorted(first, reverse=True)
            assert len(set(chosen)) == 6
            (left_out,) = set(ANSWERS) - set(chosen)
            assert truth[left_out][0] <= min(first) + 1e-5
            expected = torch.tensor([truth[t][1] + first_counts * truth[t][0] for t in chosen])
            torch.testing.assert_close(scores[question], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                probabilities[question, candidates[question]], expected.softmax(0)
            )
            assert probabilities[question].sum() == pytest.approx(1)
            text, probability = best[question]
            assert text == chosen[int(expected.argmax())]
            assert probability == pytest.approx(float(expected.softmax(0).max()), rel=1e-4)


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    module, batch = vqa().eval(), questions()
    with torch.no_grad():
        together = module.predict_step(batch, 0)
        alone = module.predict_step({key: value[1:2] for key, value in batch.items()}, 0)
    torch.testing.assert_close(alone, together[1:2])


def test_candidates_share_keys_and_pass_in_chunks() -> None:
    module, batch = vqa(candidates_per_pass=6, k_test=7).eval(), questions()
    seen: list[tuple[int, int, int]] = []
    module.encoders.text_decoder.register_forward_pre_hook(
        lambda _, args: seen.append((*args[0].shape, len(args[2][0].key)))
    )
    with torch.no_grad():
        module.predict_step(batch, 0)
    # [CLS] alone, then two candidates of each question by length: always three contexts.
    assert seen == [(3, 1, 3), (6, 3, 3), (6, 4, 3), (6, 5, 3), (3, 5, 3)]


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "best"}, 'score must be "official" or "corrected", got \'best\''),
        ({"k_test": 8}, "k_test=8 is more than the 7 answers to choose from: lower method.k_test"),
        ({"answers": ANSWERS | {"f": [2, 20, 3]}}, "an answer has the id 20.*only 20 words"),
        ({"alpha": 1.5}, "alpha=1.5"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqa(**changes)


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="no answers to choose from"):
        vqa(answers=None).eval().predict_step(questions(), 0)


# --- whole runs ---


def trainer(folder: Path, **changes: Any) -> pl.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
        "plugins": [AtomicCheckpointIO()],
    }
    return pl.Trainer(**options | changes)


def test_learns_evaluates_and_answers_from_a_checkpoint(tmp_path: Path) -> None:
    asked = vqa_toy.entries(8)
    unanswered = [{k: v for k, v in e.items() if k != "answer"} for e in reversed(asked)]
    vqa_toy.write(tmp_path, train=asked, val=asked, test=unanswered)
    constant = dict.fromkeys(("lr", "min_lr", "warmup_lr"), 3e-3)
    torch.manual_seed(0)
    module = VQA(VISION, TEXT, 1, k_test=5, **SCHEDULE | constant)
    losses: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    run = trainer(tmp_path, max_epochs=80, check_val_every_n_epoch=80, callbacks=[Watch()])
    run.fit(module, datamodule=vqa_toy.data(tmp_path))
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    assert {"train/loss_answer", "train/loss", "train/alpha", "train/lr"} <= set(
        run.callback_metrics
    )
    assert run.callback_metrics["val/vqa_accuracy"] == 100
    assert run.callback_metrics["val/vqa_accuracy_other"] == 100

    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    loaded = load_module(path)
    assert isinstance(loaded, VQA)
    assert loaded.answers == vqa_toy.ANSWERS
    datamodule = vqa_toy.data(tmp_path)
    datamodule.setup("test")
    batch = next(iter(datamodule.test_dataloader()))
    colours = ["light grey", "blue", "green"]
    with torch.no_grad():
        assert [text for text, _ in loaded.answer(batch)] == colours
        assert torch.equal(loaded.predict_step(batch, 0), module.eval().predict_step(batch, 0))

    # The test has no answers: only the file for the server.
    output = tmp_path / "out"
    (metrics,) = trainer(output).test(loaded, datamodule=datamodule, verbose=False)
    assert metrics == {"test/evaluated": 8.0}
    results = json.loads((output / "vqa_result.json").read_text())
    assert [row["question_id"] for row in results] == [107, 106, 105, 104, 103, 102, 101, 100]
    assert [row["answer"] for row in results[:3]] == colours


def test_test_split_with_answers(tmp_path: Path) -> None:
    vqa_toy.write(tmp_path, test=vqa_toy.entries(4))
    module = VQA(VISION, TEXT, 1, k_test=2, **SCHEDULE)
    (metrics,) = trainer(tmp_path).test(module, datamodule=vqa_toy.data(tmp_path), verbose=False)
    assert metrics["test/evaluated"] == 4
    assert 0 <= metrics["test/vqa_accuracy"] <= 100
    assert metrics["test/vqa_accuracy"] == metrics["test/vqa_accuracy_other"]


def test_answers_of_the_data_replace_those_of_a_checkpoint(tmp_path: Path) -> None:
    vqa_toy.write(tmp_path, test=vqa_toy.entries(4))
    module = VQA(VISION, TEXT, 1, k_test=2, answers=ANSWERS, **SCHEDULE)
    assert module.answers == list(ANSWERS)
    trainer(tmp_path).test(module, datamodule=vqa_toy.data(tmp_path), verbose=False)
    assert module.answers == vqa_toy.ANSWERS
    assert list(module.hparams["answers"]) == vqa_toy.ANSWERS


def test_k_above_the_answer_list_is_refused_before_training(tmp_path: Path) -> None:
    vqa_toy.write(tmp_path, train=vqa_toy.entries(4))
    module = VQA(VISION, TEXT, 1, k_test=6, **SCHEDULE)
    with pytest.raises(ValueError, match="k_test=6 is more than the 5 answers"):
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=vqa_toy.data(tmp_path))
