"""BLIP's captioning, question answering, NLVR2 and filter at toy size."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from methods.blip.filtering import PairFilter, bootstrapped_pairs
from methods.blip.network import opened
from shared.nn.text_transformer import TwinAttention
from tests.parity.recording import recording
from tests.unit.albef_toy import given, trainer
from tests.unit.blip_toy import (
    BOS,
    CLS,
    ENC,
    PAD,
    SEP,
    SIZE,
    WRITING,
    batch,
    build,
    captioning,
    lively,
    nlvr,
    retrieval,
    vqa,
)

ANSWERS = {"red": [CLS, 7, SEP], "light red": [CLS, 8, 7, SEP], "two": [CLS, 9, SEP]}


@pytest.mark.parametrize("kind", ["captioning", "vqa", "nlvr"])
def test_fits_and_everything_learns(kind: str) -> None:
    module = build(kind)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    data = batch(images_per_text=2 if kind == "nlvr" else 1)
    if kind == "nlvr":
        del data["answer_ids"]
    trainer(limit_val_batches=0).fit(module, given([data, data]))
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before)


# --- captioning ---


def test_the_prompt_is_no_target() -> None:
    """What stands in the place of the prompt's words is read, and not predicted."""
    module, data = lively(captioning()), batch()
    with recording((module.decoder, "forward")) as calls:
        module.training_step(data, 0)
    # [DEC] and two words: of 6, 5, 4 and 3 tokens 3, 2, 1 and 0 are left.
    assert len(calls["forward"][0].result) == 6


def test_captions_begin_with_the_prompt_and_end() -> None:
    module = lively(captioning()).eval()
    ids = module.predict_step(batch(), 0)
    assert ids.shape == (SIZE, WRITING["max_length"])
    assert ids[:, :3].tolist() == [[BOS, 5, 6]] * SIZE
    for row in ids.tolist():
        if SEP in row:
            assert set(row[row.index(SEP) + 1 :]) <= {PAD}


def test_what_is_sampled_belongs_to_the_image_and_the_seed() -> None:
    settings = {**WRITING, "sample": True, "repetition_penalty": 1.1}
    module = lively(captioning(generation=settings)).eval()
    data = batch()
    found = module.predict_step(data, 0)
    assert torch.equal(module.predict_step(data, 1), found)
    part = {name: data[name][2:3] for name in ("images", "indices")}
    assert torch.equal(module.predict_step(part, 0), found[2:3])
    other = lively(captioning(generation=settings, seed=0)).eval()
    other.hparams["seed"] = 99
    assert not torch.equal(other.predict_step(data, 0), found)


def test_captions_are_scored_by_the_references_of_the_split(tmp_path: Any) -> None:
    module = captioning()
    decoded = {7: "red", 8: "light"}

    class Tokenizer:
        @staticmethod
        def decode(ids: torch.Tensor) -> list[str]:
            return [" ".join(decoded[n] for n in row if n in decoded) for row in ids.tolist()]

    references = SimpleNamespace(captions={10: ["red"], 11: ["light red"]}, domains={})
    splits = {"val_split": "val", "test_split": None}
    module._trainer = SimpleNamespace(
        default_root_dir=tmp_path,
        is_global_zero=True,
        datamodule=SimpleNamespace(
            tokenizer=Tokenizer, hparams=splits, references={"val": references, None: None}.get
        ),
    )
    written = torch.tensor([[BOS, 5, 6, 7, SEP], [BOS, 5, 6, 8, 7]])
    module.predict_step = lambda *_: written
    module.evaluation.collect(module, {"image_ids": torch.tensor([10, 11])})
    found = module.evaluation.metrics(module, testing=False)
    assert found["bleu_1"] == pytest.approx(100.0)
    assert found["cider_bleu_4"] == found["cider"] + found["bleu_4"]
    assert found["evaluated"] == 2
    assert not list(tmp_path.iterdir())
    module.evaluation.collect(module, {"image_ids": torch.tensor([10, 11])})
    assert module.evaluation.metrics(module, testing=True) == {"evaluated": 2.0}
    text = (tmp_path / "caption_result.json").read_text()
    assert '"caption":"light red"' in text.replace(": ", ":")


def test_a_prompt_that_is_not_that_of_the_data_is_refused() -> None:
    module = captioning()
    data = SimpleNamespace(tokenizer=None, opening=torch.tensor([BOS, 5, 7]))
    module._trainer = SimpleNamespace(datamodule=data)
    with pytest.raises(ValueError, match=r"method.bos_id and prompt_ids are \[18, 5, 6\]"):
        module.on_fit_start()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bos_id": ENC}, "method.bos_id=19, but it is 18 in data.vocab"),
        ({"generation": {**WRITING, "end_id": 4}}, "method.generation.end_id=4, but it is 3"),
    ],
)
def test_ids_that_are_not_those_of_the_vocabulary_are_refused(change: Any, message: str) -> None:
    class Tokenizer:
        sep_id = SEP

        def __len__(self) -> int:
            return ENC + 1

        def id_of(self, token: str) -> int:
            return {"[DEC]": BOS, "[ENC]": ENC}[token]

    module = captioning(**change)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(tokenizer=Tokenizer()))
    with pytest.raises(ValueError, match=message):
        module.on_fit_start()


# --- question answering ---


def test_answers_begin_with_dec_and_travel_with_the_checkpoint() -> None:
    module = vqa(answers=ANSWERS)
    assert module.hparams["answers"]["light red"] == [BOS, 8, 7, SEP]
    assert (module.ranking.ids[:, 0] == BOS).all()
    again = type(module)(**module.hparams)
    assert again.ranking.answers == list(ANSWERS)
    assert torch.equal(again.ranking.ids, module.ranking.ids)


def test_scores_are_smoothed_sums_of_all_tokens() -> None:
    """The decoder reads the question, whose padding it does not see."""
    module, data = lively(vqa(answers=ANSWERS, k_test=3)).eval(), batch()
    candidates, scores = module.ranking(module.encoders, module.read(data))
    network = module.encoders
    for n in range(SIZE):
        length = int(data["attention_mask"][n].sum())
        one = {
            "images": data["images"][n : n + 1],
            "input_ids": data["input_ids"][n : n + 1, :length],
            "attention_mask": data["attention_mask"][n : n + 1, :length],
        }
        question = module.read(one)
        for place, answer in enumerate(candidates[n].tolist()):
            ids = torch.tensor([module.hparams["answers"][module.ranking.answers[answer]]])
            logits = network.write(ids, torch.ones_like(ids), question)
            loss = torch.nn.functional.cross_entropy(
                logits, ids[0, 1:], label_smoothing=0.1, reduction="sum"
            )
            torch.testing.assert_close(scores[n, place], -loss, atol=1e-4, rtol=1e-4)
    probabilities = module.predict_step(data, 0)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(SIZE))


def test_a_written_answer_depends_on_no_padding_unless_asked_to() -> None:
    data = batch(3)
    one = {name: data[name][3:] for name in ("images", "input_ids", "attention_mask")}
    short = one | {name: one[name][:, :3] for name in ("input_ids", "attention_mask")}
    same = []
    for reads_padding in (False, True):
        module = lively(vqa(reads_padding=reads_padding)).eval()
        long, cut = module.write(one), module.write(short)
        same.append(torch.allclose(long.scores, cut.scores, atol=1e-5))
    assert same == [True, False]


# --- NLVR2 ---


def test_layers_merge_two_images() -> None:
    module = nlvr()
    crosses = [layer.cross_attention for layer in module.encoders.text_encoder.layers]
    assert all(isinstance(cross, TwinAttention) for cross in crosses)
    assert [cross.merge is not None for cross in crosses] == [False, True]


def test_images_are_told_apart() -> None:
    module, data = lively(nlvr()).eval(), batch(images_per_text=2)
    logits, labels = module.outcome(data)
    assert torch.equal(labels, data["labels"])
    swapped = data | {"images": torch.cat(data["images"].chunk(2)[::-1])}
    assert not torch.allclose(module.outcome(swapped)[0], logits)
    torch.testing.assert_close(module.predict_step(data, 0), logits.softmax(dim=1))


# --- the filter ---


def test_each_text_is_judged_alone() -> None:
    web = torch.tensor([True, False, True, False])
    synthetic = torch.tensor([True, True, False, False])
    assert bootstrapped_pairs(web, synthetic).tolist() == [[0, 0], [0, 1], [1, 1], [2, 0]]


def test_the_filter_reads_with_enc_unless_as_the_official_scorer() -> None:
    module, data = lively(retrieval()).eval(), batch()
    pair = data["images"], data["input_ids"], data["attention_mask"]
    ours, official = PairFilter(module), PairFilter(module, enc_token=False)
    begun = (pair[0], opened(pair[1], ENC), pair[2])
    torch.testing.assert_close(official.logits(*begun), ours.logits(*pair))
    assert not torch.allclose(official.logits(*pair), ours.logits(*pair))
    logits = ours.logits(*pair)
    assert torch.equal(ours.keeps(*pair), logits[:, 1] > logits[:, 0])
    every = PairFilter(module, threshold=0.0)
    assert every.keeps(*pair).all()
