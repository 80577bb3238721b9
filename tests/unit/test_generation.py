"""Beam search and nucleus sampling against a slow search written out text by text."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.nn.generation import (
    CachedDecoder,
    Generation,
    discouraged,
    generate,
    nucleus,
)
from shared.nn.text_transformer import LanguageHead, TextTransformer
from tests.unit.test_text_transformer import lively

WORDS, WIDTH, CONTEXT = 9, 8, 6
END, PAD, BOS = 3, 0, 7
BEAMS = Generation(max_length=8, min_length=4, end_id=END, pad_id=PAD)
SAMPLE = replace(BEAMS, sample=True, top_k=5, top_p=0.8)


@pytest.fixture(scope="module")
def writer() -> tuple[TextTransformer, LanguageHead]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": WORDS, "hidden_size": WIDTH, "num_layers": 2, "num_heads": 2,
        "intermediate_size": 10, "max_positions": 12, "dropout": 0.0, "type_vocab_size": 0,
        "cross_attention_from": 0, "context_width": CONTEXT,
    }  # fmt: skip
    transformer = lively(TextTransformer(**sizes)).float()
    head = lively(LanguageHead(WORDS, WIDTH)).float()
    return transformer, head


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, CONTEXT, generator=torch.Generator().manual_seed(seed))


def decoder(writer: Any, contexts: Tensor, room: int = 8) -> CachedDecoder:
    transformer, head = writer
    return CachedDecoder(transformer, head, transformer.project(contexts), room)


def next_logits(writer: Any, image: Tensor) -> Callable[[list[int]], Tensor]:
    """Of a text so far the logits of the next word, read from its start without a cache."""
    transformer, head = writer

    @torch.no_grad()
    def logits(ids: list[int]) -> Tensor:
        row = torch.tensor([ids])
        context = transformer.project(image[None])
        hidden = transformer(row, torch.ones_like(row), context, causal=True)
        return head(hidden[0, -1], transformer.embeddings.word)

    return logits


# --- the cache ---


def test_reading_token_by_token_is_reading_at_once(writer: Any) -> None:
    contexts = images(3)
    ids = torch.tensor([[7, 1, 2, 4], [7, 5, 5, 8], [7, 3, 1, 6]])
    at_once = decoder(writer, contexts)(ids)
    in_turn = decoder(writer, contexts)
    in_turn(ids[:, :2])
    in_turn(ids[:, 2:3])
    torch.testing.assert_close(in_turn(ids[:, 3:]), at_once)


def test_reordered_rows_continue_what_others_have_read(writer: Any) -> None:
    """Rows may become more, and all of them look at the context of their place."""
    context = images(1)
    ids = torch.tensor([[7, 1, 2], [7, 5, 4]])
    cached = decoder(writer, context)
    cached(ids)
    rows = torch.tensor([1, 0, 1, 1])
    cached.reorder(rows)
    more = torch.tensor([[4], [5], [6], [1]])
    expected = decoder(writer, context)(torch.cat([ids[rows], more], dim=1))
    torch.testing.assert_close(cached(more), expected)


def test_steps_copy_nothing_that_was_read(writer: Any) -> None:
    cached = decoder(writer, images(2))
    cached(torch.full((2, 3), BOS))
    buffers = [buffer.data_ptr() for past in cached.past for buffer in past.buffers]
    cached(torch.full((2, 1), 1))
    assert [buffer.data_ptr() for past in cached.past for buffer in past.buffers] == buffers
    assert {past.length for past in cached.past} == {4}


def test_a_past_that_is_full(writer: Any) -> None:
    cached = decoder(writer, images(2), room=3)
    cached(torch.full((2, 3), BOS))
    with pytest.raises(ValueError, match="4 tokens do not fit a past with room for 3"):
        cached(torch.full((2, 1), 1))


# --- beam search ---


def slow_beam_search(
    logits: Callable[[list[int]], Tensor], prompt: list[int], s: Generation
) -> tuple[list[int], float]:
    """One text, with lists: docs/papers/blip.md, section 7.3."""
    beams = [(0.0, prompt)]
    finished: list[tuple[float, list[int]]] = []
    while True:
        length = len(beams[0][1])
        candidates = []
        for total, ids in beams:
            scores = logits(ids).log_softmax(dim=0)
            for word in set(ids) if s.repetition_penalty != 1 else ():
                scores[word] *= s.repetition_penalty  # log-probabilities are negative
            if length < s.min_length:
                scores[s.end_id] = -math.inf
            candidates += [(total + float(score), ids, w) for w, score in enumerate(scores)]
        candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * s.num_beams]
        best = candidates[0][0]
        beams = []
        for rank, (total, ids, word) in enumerate(candidates):
            if word != s.end_id:
                beams.append((total, [*ids, word]))
            elif rank < s.num_beams:
                finished.append((total / length**s.length_penalty, [*ids, word]))
                finished = sorted(finished, key=lambda f: -f[0])[: s.num_beams]
            if len(beams) == s.num_beams:
                break
        full = len(finished) == s.num_beams
        if full and finished[-1][0] >= best / length**s.length_penalty:
            break
        if length + 1 == s.max_length:
            finished += [(t / (length + 1) ** s.length_penalty, ids) for t, ids in beams]
            break
    score, ids = max(finished)
    return ids + [s.pad_id] * (s.max_length - len(ids)), score


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    beams=st.integers(1, 4),
    least=st.integers(1, 8),
    penalty=st.sampled_from([1.0, 1.1, 3.0]),
    length_penalty=st.sampled_from([1.0, 0.0, 2.0]),
    prompt=st.lists(st.integers(1, WORDS - 1), max_size=3),
)
def test_beam_search_of_a_batch_is_the_slow_one_of_each(
    writer: Any,
    seed: int,
    beams: int,
    least: int,
    penalty: float,
    length_penalty: float,
    prompt: list[int],
) -> None:
    rules = replace(
        BEAMS,
        num_beams=beams,
        min_length=least,
        repetition_penalty=penalty,
        length_penalty=length_penalty,
    )
    contexts, start = 3 * images(4, seed), [BOS, *prompt]
    found = generate(decoder(writer, contexts), torch.tensor([start] * 4), rules)
    for context, sequence, score in zip(contexts, *found, strict=True):
        ids, expected = slow_beam_search(next_logits(writer, context), start, rules)
        assert float(score) == pytest.approx(expected, abs=1e-4)
        assert sequence.tolist() == ids


def test_beam_search_by_hand() -> None:
    """Two words, A = 1 and B = 2, and an end. After the prompt of one token: A 0.6, B 0.4; after A
    the end has 0.3, after B 0.9. The end is counted with the length before it, prompt included: B
    and the end score ln(0.4 x 0.9) / 2 = -0.511, A and the end ln(0.6 x 0.3) / 2 = -0.857."""
    table = {0: [0.0, 0.6, 0.4, 0.0], 1: [0.0, 0.35, 0.35, 0.3], 2: [0.0, 0.05, 0.05, 0.9]}

    class Table:
        past = ()

        def __init__(self) -> None:
            self.rows = torch.zeros(0)

        def __call__(self, ids: Tensor) -> Tensor:
            return torch.tensor([table[int(last)] for last in ids[:, -1]]).clamp_min(1e-9).log()

        def reorder(self, rows: Tensor) -> None:
            pass

    rules = Generation(max_length=3, min_length=1, end_id=3, pad_id=0, num_beams=2)
    sequences, scores = generate(Table(), torch.tensor([[0]]), rules)  # type: ignore[arg-type]
    assert sequences.tolist() == [[0, 2, 3]]
    assert float(scores) == pytest.approx(math.log(0.4 * 0.9) / 2, abs=1e-5)


def test_texts_do_not_depend_on_their_neighbours(writer: Any) -> None:
    contexts = 3 * images(5)
    uniforms = torch.rand(5, 8, generator=torch.Generator().manual_seed(3))
    prompt = torch.full((5, 1), BOS)
    for rules in (BEAMS, SAMPLE):
        together = generate(decoder(writer, contexts), prompt, rules, uniforms)
        for n in range(5):
            part = slice(n, n + 1)
            alone = generate(decoder(writer, contexts[part]), prompt[part], rules, uniforms[part])
            assert torch.equal(alone.sequences, together.sequences[part])


# --- sampling ---


def test_the_nucleus_by_hand() -> None:
    """Of 0.5, 0.3, 0.15, 0.05 the first two exceed 0.7; 0.8 is not exceeded by them, and takes the
    third as well; of top-k 1 one is left, whatever p."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    rules = replace(SAMPLE, top_k=4, top_p=0.7)
    torch.testing.assert_close(nucleus(logits, rules), torch.tensor([[0, 0.625, 0, 0.375]]))
    three = torch.tensor([[0.15, 0.5, 0, 0.3]]) / 0.95
    torch.testing.assert_close(nucleus(logits, replace(rules, top_p=0.81)), three)
    one = nucleus(logits, replace(rules, top_k=1))
    assert one.tolist() == [[0, 1, 0, 0]]
    torch.testing.assert_close(nucleus(logits, replace(rules, top_p=1.0)), logits.exp())


def test_the_nucleus_is_of_the_words_that_top_k_leaves() -> None:
    """0.4, 0.3, 0.2, 0.1: of the first two 4/7 and 3/7 are left, and 4/7 does exceed 0.5."""
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    kept = nucleus(logits, replace(SAMPLE, top_k=2, top_p=0.5))
    assert kept.tolist() == [[0, 0, 0, 1]]


def test_words_are_drawn_by_their_probabilities(writer: Any) -> None:
    """The distribution of the first word over an even grid of uniform numbers."""
    rules = replace(SAMPLE, max_length=2)
    context = 2 * images(1)
    uniforms = ((torch.arange(2000) + 0.5) / 2000)[:, None]
    prompt = torch.full((2000, 1), BOS)
    found = generate(decoder(writer, context.expand(2000, -1, -1)), prompt, rules, uniforms)
    logits = next_logits(writer, context[0])([BOS])[None]
    expected = nucleus(discouraged(logits, torch.tensor([[BOS]]), rules), rules)[0]
    assert (expected > 0).sum() > 1
    counts = torch.bincount(found.sequences[:, 1], minlength=WORDS) / 2000
    torch.testing.assert_close(counts, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, expected[found.sequences[:, 1]].log())


def test_a_sample_ends_and_is_padded(writer: Any) -> None:
    uniforms = torch.rand(64, 8, generator=torch.Generator().manual_seed(1))
    prompt = torch.full((64, 1), BOS)
    contexts = 2 * images(64)
    rules = replace(SAMPLE, min_length=3, top_k=WORDS, top_p=1.0)
    sequences, _ = generate(decoder(writer, contexts), prompt, rules, uniforms)
    ends = (sequences == END).long()
    assert ends.sum(dim=1).max() == 1
    ended = ends.cumsum(dim=1) - ends > 0
    assert 0 < ended.any(dim=1).sum() < 64
    assert (sequences[ended] == PAD).all()
    first = ends.argmax(dim=1)[ends.any(dim=1)]
    assert int(first.min()) == 3  # so many tokens are before it


# --- processors and refusals ---


def test_used_words_are_discouraged_and_an_early_end_is_impossible() -> None:
    scores = torch.tensor([[2.0, -1.0, 0.5, 3.0]])
    ids = torch.tensor([[0, 1, 1]])
    rules = Generation(8, 4, end_id=3, pad_id=0, repetition_penalty=2.0)
    assert discouraged(scores, ids, rules).tolist() == [[1.0, -2.0, 0.5, -math.inf]]
    assert discouraged(scores, ids, replace(rules, min_length=3)).tolist() == [[1, -2, 0.5, 3]]
    assert scores.tolist() == [[2.0, -1.0, 0.5, 3.0]]


def test_what_is_refused(writer: Any) -> None:
    prompt = torch.full((1, 8), BOS)
    with pytest.raises(ValueError, match="max_length=8 leaves no room after 8 tokens"):
        generate(decoder(writer, images(1)), prompt, BEAMS)
    with pytest.raises(ValueError, match="sampling needs uniform numbers"):
        generate(decoder(writer, images(1)), prompt[:, :1], SAMPLE)
    for bad in ({"num_beams": 0}, {"top_k": 0}, {"top_p": 0.0}, {"repetition_penalty": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            replace(BEAMS, **bad)
