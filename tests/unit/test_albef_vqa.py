"""ALBEF's question answering: what its golden case leaves open of the ranking, and a run."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.albef.vqa import VQA
from shared.checkpoints.reading import load_module
from tests.unit import vqa_toy
from tests.unit.albef_toy import apart, build, trainer

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
    module = build("vqa", **{"k_test": 6, "answers": ANSWERS} | changes)
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
            by_answer = partial(answer_log_probs, module.encoders, batch, question)
            truth = {text: by_answer(ids) for text, ids in ANSWERS.items()}
            first = sorted(ANSWERS, key=lambda text: -float(truth[text][0]))
            given = dict(zip(ANSWERS, probabilities[question], strict=True))
            chosen = [text for text in ANSWERS if given[text]]
            assert len(chosen) == 6
            (left_out,) = set(ANSWERS) - set(chosen)
            assert truth[left_out][0] <= truth[first[5]][0] + 1e-5
            scores = [truth[t].sum() + first_counts * truth[t][0] for t in chosen]
            expected = torch.stack(scores).softmax(0)
            found = torch.stack([given[text] for text in chosen])
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
