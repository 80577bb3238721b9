"""ALBEF's question answering: what its golden case leaves open of loss and ranking, and a run."""

import json
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.albef.vqa import VQA
from shared.checkpoints.reading import load_module
from shared.losses.language import text_sums, token_losses
from shared.nn.text_transformer import TextTransformer
from tests.unit import vqa_toy
from tests.unit.albef_toy import DISTILLED, TEXT, VISION, apart, trainer

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
    module = VQA(VISION, TEXT, **options | DISTILLED | changes)
    with torch.no_grad():  # larger weights, so that nothing is nearly uniform
        for parameter in module.encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return apart(module)


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
    """(M - 1,) of each token after the first, alone and without any padding."""
    length = int(batch["attention_mask"][question].sum())
    asked = batch["input_ids"][question : question + 1, :length]
    image = network.visual_encoder(batch["images"][question : question + 1])
    encoder, decoder = network.text_encoder, network.text_decoder
    states = encoder(asked, torch.ones_like(asked), encoder.project(image))
    written = torch.tensor([ids])
    hidden = decoder(written, torch.ones_like(written), decoder.project(states), causal=True)
    log_probs = network.word_head(hidden[0, :-1], decoder.embeddings.word).log_softmax(dim=-1)
    return log_probs[range(len(ids) - 1), ids[1:]]


# --- the loss ---


def test_token_losses_by_hand() -> None:
    logits = torch.tensor([[0.0, log(3.0)], [log(4.0), 0.0]])  # probabilities 1/4, 3/4; 4/5, 1/5
    teacher = torch.tensor([[0.0, 0.0], [0.0, log(9.0)]])  # 1/2, 1/2; 1/10, 9/10
    teacher, targets = teacher.requires_grad_(), torch.tensor([1, 0])
    hard = torch.tensor([-log(3 / 4), -log(4 / 5)])
    torch.testing.assert_close(token_losses(logits, targets), hard)
    soft = torch.tensor([-(log(1 / 4) + log(3 / 4)) / 2, -(0.1 * log(4 / 5) + 0.9 * log(1 / 5))])
    both = token_losses(logits, targets, teacher, alpha=0.4)
    torch.testing.assert_close(both, 0.6 * hard + 0.4 * soft)
    assert not both.requires_grad, "no gradient reaches the teacher"
    with torch.autocast("cpu", torch.bfloat16):  # in full precision all the same
        assert torch.equal(token_losses(logits, targets, teacher, alpha=0.4), both)


def test_text_sums() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    sums = text_sums(torch.tensor([1.0, 2.0, 10.0, 20.0, 30.0]), mask)
    assert sums.tolist() == [3.0, 0.0, 60.0]


def test_padding_has_no_influence_on_the_loss() -> None:
    """Against one answer at a time; without distillation the copy moves but is not asked."""
    module, batch = vqa(alpha=0.0), training_batch()
    copy = module.momentum_encoders
    copy.module.text_decoder.register_forward_pre_hook(lambda *_: pytest.fail("asked"))
    before = [p.clone() for p in copy.parameters()]
    loss = module.training_step(batch, 0)
    expected = torch.zeros(())
    rows = zip(batch["answer_ids"], batch["answer_mask"], batch["answer_weights"], strict=True)
    for question, (ids, mask, weight) in zip([0, 1, 1, 2], rows, strict=True):
        written = ids[mask.bool()].tolist()
        expected = (
            expected - weight * answer_log_probs(module.encoders, batch, question, written).sum()
        )
    torch.testing.assert_close(loss, expected / 3)
    for old, new, own in zip(before, copy.parameters(), module.encoders.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * own)
    loss.backward()
    assert all(p.grad is not None for p in module.encoders.parameters())


def test_padding_of_a_context_is_not_seen() -> None:
    torch.manual_seed(0)
    decoder = TextTransformer(**TEXT | {"cross_attention_from": 0}, context_width=6)
    context, ids = torch.randn(2, 5, 6), torch.tensor([[2, 5], [2, 6], [2, 7], [2, 8]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    ones = torch.ones_like(ids)
    masked = decoder.project(context, mask=mask)
    shared = decoder(ids, ones, masked)
    short = decoder(ids[:2], ones[:2], decoder.project(context[:1, :3]))
    torch.testing.assert_close(short, shared[:2])
    rows = [kv.rows(torch.tensor([0, 0, 1, 1])) for kv in masked]
    torch.testing.assert_close(decoder(ids, ones, rows), shared)


# --- ranking ---


@pytest.mark.parametrize(("score", "first_counts"), [("official", 1), ("corrected", 0)])
@pytest.mark.parametrize("candidates_per_pass", [1, 7, 1000])
def test_ranking_equals_brute_force(
    score: str, first_counts: int, candidates_per_pass: int
) -> None:
    module = vqa(score=score, candidates_per_pass=candidates_per_pass).eval()
    batch = questions()
    with torch.no_grad():
        probabilities = module.predict_step(batch, 0)
        best = module.answer(batch)
        for question in range(3):
            truth = {
                text: answer_log_probs(module.encoders, batch, question, ids)
                for text, ids in ANSWERS.items()
            }
            first = sorted(ANSWERS, key=lambda text: -float(truth[text][0]))
            chosen = [text for text in ANSWERS if probabilities[question][[*ANSWERS].index(text)]]
            assert len(chosen) == 6
            (left_out,) = set(ANSWERS) - set(chosen)
            assert truth[left_out][0] <= truth[first[5]][0] + 1e-5
            scores = [truth[t].sum() + first_counts * truth[t][0] for t in chosen]
            expected = torch.stack(scores).softmax(0)
            found = probabilities[question][[[*ANSWERS].index(text) for text in chosen]]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            assert best[question][0] == chosen[int(expected.argmax())]
            assert best[question][1] == pytest.approx(float(expected.max()), rel=1e-4)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "best"}, 'score must be "official" or "corrected", got \'best\''),
        ({"k_test": 8}, "k_test=8 is more than the 7 answers to choose from: lower method.k_test"),
        ({"answers": ANSWERS | {"f": [2, 20, 3]}}, "an answer has the id 20.*only 20 words"),
        ({"answers": None}, "no answers to choose from"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqa(**changes).eval().predict_step(questions(), 0)


# --- whole runs ---


def test_fits_evaluates_and_answers_from_a_checkpoint(tmp_path: Path) -> None:
    asked = vqa_toy.entries(8)
    unanswered = [{k: v for k, v in e.items() if k != "answer"} for e in reversed(asked)]
    vqa_toy.write(tmp_path, train=asked, val=asked, test=unanswered)
    module: Any = vqa(answers=None, k_test=5)
    run = trainer(max_epochs=2, default_root_dir=tmp_path)
    run.fit(module, datamodule=vqa_toy.data(tmp_path))
    logged = {"train/loss_answer", "train/loss", "train/alpha", "train/lr"}
    assert logged <= set(run.callback_metrics)
    accuracy = float(run.callback_metrics["val/vqa_accuracy"])
    assert 0 <= accuracy <= 100
    assert run.callback_metrics["val/vqa_accuracy_other"] == accuracy

    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    loaded: Any = load_module(path)
    assert loaded.ranking.answers == vqa_toy.ANSWERS
    datamodule = vqa_toy.data(tmp_path)
    datamodule.setup("test")
    batch = next(iter(datamodule.test_dataloader()))
    with torch.no_grad():
        answers = [text for text, _ in loaded.answer(batch)]
        assert torch.equal(loaded.predict_step(batch, 0), module.eval().predict_step(batch, 0))

    # The test has no answers: only the file for the server.
    output = tmp_path / "out"
    testing = trainer(default_root_dir=output)
    (metrics,) = testing.test(loaded, datamodule=datamodule, verbose=False)
    assert metrics == {"test/evaluated": 8.0}
    results = json.loads((output / "vqa_result.json").read_text())
    assert [row["question_id"] for row in results] == [107, 106, 105, 104, 103, 102, 101, 100]
    assert [row["answer"] for row in results[:3]] == answers
