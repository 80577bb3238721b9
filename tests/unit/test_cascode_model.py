"""CasCode's encoder, head and losses against numbers worked out by hand, and packed batches."""

import math
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cascode import scoring
from methods.cascode.controls import ShuffledPairs
from methods.cascode.losses import (
    hard_negatives,
    match_scores,
    matching_loss,
    pairs_with,
    uniform_negatives,
)
from methods.cascode.model import CodeEncoder, PairHead
from methods.cascode.module import Slow
from methods.cascode.scoring import encode, score_pairs
from methods.cascode.tokenizer import CodeTokenizer, packed

WORDS, WIDTH = 30, 8
BERT: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "num_layers": 2, "num_heads": 2,
    "intermediate_size": 12, "max_positions": 16, "type_vocab_size": 2, "dropout": 0.0,
}  # fmt: skip
ROBERTA = BERT | {"type_vocab_size": 1, "pad_id": 1, "positions_after_pad": True}
FORMS = {"bert": BERT, "roberta": ROBERTA}


def lively(module: Any) -> Any:
    """Weights of a standard deviation of 0.5 in all places, so that every one of them counts."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module.eval()


def encoder(form: str = "bert", *arguments: Any, **changes: Any) -> CodeEncoder:
    torch.manual_seed(0)
    return lively(CodeEncoder(FORMS[form] | changes, *arguments))


def texts(form: str = "bert", lengths: tuple[int, ...] = (6, 4, 1)) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, WORDS, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.where(mask.bool(), ids, FORMS[form].get("pad_id", 0)), mask


def close(found: Tensor, expected: Any) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- vectors ---


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_vectors_are_float32_in_any_precision(pooling):
    model, (ids, mask) = encoder("bert", pooling), texts()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids, mask)
    low = model.to(torch.bfloat16)(ids, mask)
    assert mixed.dtype == low.dtype == torch.float32
    close(low.norm(dim=1), torch.ones(3))  # normalised in float32, not before


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(["bert", "roberta"]),
    st.sampled_from(["mean", "cls", "pooler"]),
    st.integers(1, 4),
    st.integers(0, 999),
)
def test_padding_on_the_right_does_not_count(form, pooling, padding, seed):
    """However much there is, and whatever ids stand there."""
    model, (ids, mask) = encoder(form, pooling), texts(form)
    wider = F.pad(mask, (0, padding))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, WORDS, wider.shape, generator=generator)
    noisy = torch.where(wider.bool(), F.pad(ids, (0, padding)), noise)
    close(model(noisy, wider), model(ids, mask))
    close(model.first(noisy, wider), model.first(ids, mask))


def test_token_types_and_the_first_token():
    """`first` is what the whole pass gives there, with types and without."""
    model, (ids, mask) = encoder(), texts()
    types = torch.tensor([[0, 0, 0, 1, 1, 1]] * 3)
    for given_types in (None, types):
        whole = model.text.encode(ids, mask, given_types)
        close(model.first(ids, mask, given_types), whole[:, 0])
    assert torch.equal(model.first(ids, mask, torch.zeros_like(types)), model.first(ids, mask))
    with_types = model.first(ids, mask, types)
    apart = (with_types - model.first(ids, mask)).abs().amax(dim=1)
    assert (apart[:2] > 1e-3).all()
    assert apart[2] == 0, "the third text has one token, and it is of type 0"


def test_frozen_layers():
    model, (ids, mask) = encoder("bert", "pooler"), texts()
    model.freeze(0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.freeze(1)
    model(ids, mask).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("text.layers.1.", "pooler."))
    }
    assert trained == expected


def test_an_encoder_that_cannot_be():
    for layers in (-1, 2, 3):
        message = rf"frozen_layers={layers}: choose 0 to 1 of 2 layers"
        with pytest.raises(ValueError, match=message):
            encoder().freeze(layers)
    with pytest.raises(ValueError, match="pooling is one of mean, cls, pooler, got 'max'"):
        CodeEncoder(BERT, "max")  # type: ignore[arg-type]


def test_dropout_of_the_head_is_for_training_alone_and_in_two_places():
    torch.manual_seed(0)
    head, first = lively(PairHead(WIDTH, 0.5)).train(), torch.ones(4000, WIDTH)
    assert not torch.equal(head(first), head(first))
    head.dense.weight.data.zero_()  # then what is dropped before it cannot be seen
    inner = float(torch.tanh(head.dense.bias[0]).detach())
    head.output.weight.data.zero_()[0, 0] = 1.0
    head.output.bias.data.zero_()
    values = head(first)[:, 0]
    kept = values != 0
    close(values[kept], torch.full_like(values[kept], 2 * inner))
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.05)
    nn.init.eye_(head.dense.weight)  # and before it: ones become 0 or 2
    head.dense.bias.data.zero_()
    kinds = {round(float(value), 4) for value in head(first)[:, 0].detach().unique()}
    assert kinds == {0.0, round(2 * math.tanh(2.0), 4)}


def test_initial_weights_of_the_head():
    torch.manual_seed(0)
    head = PairHead(256, 0.1)
    assert head.output.weight.shape == (2, 256)
    for layer in (head.dense, head.output):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert (layer.bias == 0).all()


def test_the_score_is_the_difference_of_both_logits():
    """z_1 alone would order them the other way round."""
    logits = torch.tensor([[-3.0, 1.0], [2.0, 2.5]])
    assert match_scores(logits).tolist() == [4.0, 0.5]
    assert match_scores(logits.bfloat16()).dtype == torch.float32
    probabilities = logits.softmax(dim=1)[:, 1]
    close(match_scores(logits).sigmoid(), probabilities)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.floats(0.1, 40.0), st.integers(0, 999))
def test_matching_loss_is_two_class_cross_entropy(size, scale, seed):
    """In value and gradient, also where probabilities are 0 or 1; the sum form is twice as much."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2 * size, 2, generator=generator, dtype=torch.double)
    labels = pairs_with(torch.arange(size)).labels
    one, other = logits.float().requires_grad_(), logits.float().requires_grad_()
    loss = matching_loss(match_scores(one), labels)
    expected = F.cross_entropy(other, labels.long())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for value, leaf in ((loss, one), (expected, other)):
        (gradient,) = torch.autograd.grad(value, leaf)
        assert torch.isfinite(gradient).all()
        close(gradient, (one.detach().softmax(dim=1) - F.one_hot(labels.long())) / (2 * size))
    log_p = F.logsigmoid(match_scores(one.detach())[:size])
    log_not_p = F.logsigmoid(-match_scores(one.detach())[size:])
    torch.testing.assert_close(-(log_p + log_not_p).mean(), 2 * loss.detach())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1, width=32, exclude_max=True), min_size=2, max_size=40))
def test_no_query_gets_its_own_code_as_negative(uniforms):
    drawn = uniform_negatives(torch.tensor(uniforms))
    assert drawn.dtype == torch.long
    assert ((drawn >= 0) & (drawn < len(uniforms))).all()
    assert (drawn != torch.arange(len(uniforms))).all()


@pytest.mark.parametrize("size", [2, 3, 7, 64])
def test_all_other_codes_are_equally_likely(size):
    """Each takes up the same part of [0, 1): from the middles of the parts each comes once."""
    middles = (torch.arange(size - 1) + 0.5) / (size - 1)
    drawn = torch.stack([uniform_negatives(middle.expand(size)) for middle in middles])
    for query, column in enumerate(drawn.T.tolist()):
        assert sorted(column) == [code for code in range(size) if code != query]
    with pytest.raises(ValueError, match="a batch of one pair has no negative: raise batch_size"):
        uniform_negatives(torch.rand(1))


def test_hard_negatives():
    rows = [[0.9, 0.1, 0.2], [0.3, 0.1, 0.2], [0.5, 0.7, 0.9]]
    similarity = torch.tensor(rows, requires_grad=True)
    uniform = torch.tensor([1, 2, 0])
    for chosen, expected in (
        ([True, True, True], [2, 0, 1]),
        ([False, False, False], [1, 2, 0]),
        ([True, False, True], [2, 2, 1]),
    ):
        drawn = hard_negatives(similarity, uniform, torch.tensor(chosen))
        assert drawn.tolist() == expected
        assert not drawn.requires_grad, "no gradient flows through the choice"
        assert similarity.requires_grad, "the caller's stays as it was"


# --- packed batches ---


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 200))
def test_packed(lengths, positions):
    batches = list(packed(lengths, positions))
    order = [place for batch in batches for place in batch]
    assert sorted(order) == list(range(len(lengths))), "each once"
    assert [lengths[place] for place in order] == sorted(lengths), "the shortest first"
    for batch, following in pairwise([*batches, []]):
        longest = max(lengths[place] for place in batch)
        assert len(batch) == 1 or len(batch) * longest <= positions
        if following:  # no batch could have taken one more
            assert (len(batch) + 1) * lengths[following[0]] > positions


def tokenizer(form: str) -> CodeTokenizer:
    """Of words w3, w4, ... whose ids are their numbers."""
    roberta = form == "roberta"
    special = ["<s>", "<pad>", "</s>", "<unk>"] if roberta else ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    names = {name: number for number, name in enumerate(special)}
    model = WordLevel(names | {f"w{n}": n for n in range(4, WORDS)}, unk_token=special[3])
    return CodeTokenizer.from_state({"content": Tokenizer(model).to_str(), "mode": None})


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """So that a few sequences make several batches, whose sizes are noted."""
    sizes: list[int] = []

    def noted(lengths: list[int], positions: int) -> Iterator[list[int]]:
        for batch in packed(lengths, 20):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(scoring, "packed", noted)
    return sizes


def rows(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    lengths = [generator.randint(1, longest) for _ in range(count)]
    return [[generator.randrange(4, WORDS) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
@pytest.mark.parametrize("form", ["bert", "roberta"])
def test_vectors_do_not_depend_on_what_else_is_encoded(form, pooling, small_batches):
    """In the order of the input; a sequence too long is cut before its last special token."""
    model, tokens, sequences = encoder(form, pooling), tokenizer(form), rows(12, 9)
    told: list[int] = []
    vectors = encode(model, tokens, sequences, 8, told.append)
    assert told == small_batches, "progress, batch by batch"
    assert sum(told) == 12
    assert vectors.dtype == torch.float32
    assert max(small_batches) > 1
    assert len(small_batches) > 2
    for vector, sequence in zip(vectors, sequences, strict=True):
        ids = torch.tensor([[tokens.start_id, *sequence[:6], tokens.separator_id]])
        close(vector, model(ids, torch.ones_like(ids))[0].detach())
    backwards = encode(model, tokens, sequences[::-1], 8)
    close(backwards.flip(0), vectors)
    assert encode(model, tokens, [], 8).shape == (0, WIDTH)


@pytest.mark.parametrize("form", ["bert", "roberta"])
def test_scores_do_not_depend_on_what_else_is_judged(form, small_batches):
    """Those of pairs of several queries at once are those of each alone."""
    torch.manual_seed(3)
    model, tokens, head = encoder(form), tokenizer(form), lively(PairHead(WIDTH, 0.1))
    queries, codes = rows(3, 6, seed=1), rows(4, 9, seed=2)
    pairs = [(query, code) for query in queries for code in codes]
    scores = score_pairs(model, head, tokens, pairs, 12, 4)
    assert scores.dtype == torch.float32
    assert max(small_batches) > 1
    assert len(small_batches) > 2
    for score, (query, code) in zip(scores, pairs, strict=True):
        ids, types = tokens.pair(query, code, 12, 4)
        whole = model.text.encode(
            torch.tensor([ids]), torch.ones(1, len(ids)), torch.tensor([types])
        )
        z = head(whole[:, 0])[0]
        close(score, (z[1] - z[0]).detach())
    apart = [score_pairs(model, head, tokens, pairs[n : n + 4], 12, 4) for n in (0, 4, 8)]
    close(torch.cat(apart), scores)
    assert float(scores.std()) > 0.01, "they are told apart"
    assert score_pairs(model, head, tokens, [], 12, 4).shape == (0,)


def test_scores_of_pairs_are_not_rounded_to_bfloat16():
    """Neither under autocast nor from an encoder in bfloat16: confident scores would be equal."""
    torch.manual_seed(0)
    head = PairHead(8, dropout=0.0).eval()
    head.output.weight.data *= 50
    first = torch.randn(64, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = head(first)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(first).detach(), rtol=0, atol=0)
    assert head(first.bfloat16()).dtype == torch.float32
    assert len(logits[:, 1].unique()) > len(logits[:, 1].bfloat16().unique())


# --- the judge at work ---


@pytest.mark.parametrize("changes", [{"negatives": "easy"}, {"k_test": []}, {"k_test": [0]}])
def test_a_judge_that_cannot_be(changes):
    with pytest.raises(ValueError, match=r'are "uniform" or "hard"|numbers of candidates from 1'):
        Slow(fast="", text=BERT, **changes)


def test_a_micro_batch_changes_neither_scores_nor_gradients():
    batch = {"query_tokens": rows(4, 5, seed=1), "code_tokens": rows(4, 7, seed=2)}
    results = []
    for size in (None, 3):
        torch.manual_seed(5)
        module = lively(Slow(fast="", text=BERT, head_dropout=0.0, slow_micro_batch=size))
        module.tokenizer, module.lengths = tokenizer("bert"), {"pair": 12, "query": 4}
        pairs = module.judge.draw_pairs(4, None)
        scores = module.judge(batch, pairs)
        matching_loss(scores, pairs.labels).backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        results.append([scores.detach(), *gradients])
    assert len(results[0]) > 20
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_the_control_draws_alike_and_shifts_the_codes():
    batch = {"indices": torch.arange(5)}
    pairs, shifted = (form(fast="", text=BERT).pairs(batch) for form in (Slow, ShuffledPairs))
    assert torch.equal(shifted.codes, (pairs.codes + 1) % 5)
    assert torch.equal(shifted.queries, pairs.queries)
    assert torch.equal(shifted.labels, pairs.labels)
