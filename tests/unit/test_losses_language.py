"""Masked language modelling: which tokens are masked, and the distilled loss by hand."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.losses.language import (
    IGNORED,
    MaskDraws,
    decoder_labels,
    mask_tokens,
    masked_lm_loss,
    smoothed_losses,
    text_sums,
    token_losses,
)

PAD, UNK, CLS, SEP, MASK, WORDS = 0, 1, 2, 3, 4, 30


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed))


def test_masking_by_hand() -> None:
    """[CLS], masked, by chance another word, itself, not selected, [SEP], padding."""
    ids = torch.tensor([[CLS, 10, 11, 12, 13, SEP, PAD]])
    given = MaskDraws(
        torch.tensor([[1, 1, 1, 1, 0, 1, 1]]).bool(),
        torch.tensor([[1, 1, 0, 0, 1, 1, 1]]).bool(),
        torch.tensor([[1, 1, 1, 0, 1, 0, 1]]).bool(),
        torch.tensor([[20, 21, 22, 23, 24, 25, 26]]),
    )
    masked, labels = mask_tokens(ids, given, PAD, CLS, MASK)
    assert masked.tolist() == [[CLS, MASK, 22, 12, 13, MASK, PAD]]
    assert labels.tolist() == [[IGNORED, 10, 11, 12, IGNORED, SEP, IGNORED]]
    assert ids.tolist() == [[CLS, 10, 11, 12, 13, SEP, PAD]], "the texts are left as they were"


@pytest.mark.parametrize(
    ("number", "selected", "replaced", "random", "word"),
    [(0.0, True, True, True, 0), (0.149, True, True, True, 4), (0.15, False, True, True, 4),
     (0.79, False, True, False, 23), (0.8, False, False, False, 24),
     (1 - 2**-24, False, False, False, 29)],
)  # fmt: skip
def test_draws_of_numbers(
    number: float, selected: bool, replaced: bool, random: bool, word: int
) -> None:
    """At the edges: the largest number below 1 is a word, too."""
    found = MaskDraws.from_uniforms(torch.full((1, 1, 4), number), WORDS, 0.15)
    values = (found.selected, found.replaced, found.random, found.words)
    assert [value.item() for value in values] == [selected, replaced, random, word]


def test_shares() -> None:
    """15 % are selected; 80 % of them masked, 10 % random, 10 % kept; all words equally often."""
    ids = torch.full((400, 250), 7)
    given = MaskDraws.from_uniforms(uniforms(400, 250), WORDS, 0.15)
    masked, labels = mask_tokens(ids, given, PAD, CLS, MASK)
    selected = labels != IGNORED
    assert float(selected.float().mean()) == pytest.approx(0.15, abs=0.004)
    of_selected = masked[selected]
    # A word drawn at random may be the mask or the word itself: once in 30 times each.
    for word, share in ((MASK, 0.8 + 0.1 / WORDS), (7, 0.1 + 0.1 / WORDS)):
        assert float((of_selected == word).float().mean()) == pytest.approx(share, abs=0.012)
    counts = given.words.flatten().bincount(minlength=WORDS) / given.words.numel()
    assert float((counts - 1 / WORDS).abs().max()) < 0.003
    assert (masked[~selected] == 7).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.floats(0, 1), st.integers(0, 10_000))
def test_padding_and_cls_are_never_touched(
    rows: int, length: int, probability: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (rows, length), generator=generator)
    given = MaskDraws.from_uniforms(uniforms(rows, length, seed=seed), WORDS, probability)
    masked, labels = mask_tokens(ids, given, PAD, CLS, MASK)
    special = (ids == PAD) | (ids == CLS)
    assert (labels[special] == IGNORED).all()
    selected = labels != IGNORED
    assert torch.equal(masked[~selected], ids[~selected])
    assert torch.equal(labels[selected], ids[selected])
    assert ((masked >= 0) & (masked < WORDS)).all()
    if probability == 1:
        assert torch.equal(selected, ~special)


# --- the loss ---


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_loss_by_hand(alpha: float) -> None:
    """Two positions of two words; the student's odds are 3 to 1 and even, the teacher's even and
    1 to 4."""
    logits = torch.tensor([[log(3.0), 0.0], [0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0], [0.0, log(4.0)]], requires_grad=True)
    labels = torch.tensor([0, 1])
    hard = torch.tensor([-log(3 / 4), -log(1 / 2)])
    soft = torch.tensor([-0.5 * log(3 / 4) - 0.5 * log(1 / 4), -log(1 / 2)])
    expected = (1 - alpha) * hard + alpha * soft
    with torch.autocast("cpu", torch.bfloat16):  # in full precision all the same
        each = token_losses(logits, labels, teacher, alpha)
        mean = masked_lm_loss(logits, labels, teacher, alpha)
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(mean, expected.mean())
    (each.sum() + mean).backward()
    assert teacher.grad is None, "no gradient reaches the teacher"
    torch.testing.assert_close(token_losses(logits, labels), hard)
    torch.testing.assert_close(masked_lm_loss(logits, labels), hard.mean())


def test_nothing_selected_gives_zero_with_a_gradient_of_zero() -> None:
    """The official code gives NaN."""
    weight = torch.ones(WORDS, 8, requires_grad=True)
    hidden = torch.zeros(0, 8)
    logits, labels = hidden @ weight.T, torch.zeros(0, dtype=torch.long)
    loss = masked_lm_loss(logits, labels, torch.zeros(0, WORDS), 0.4)
    assert float(loss.detach()) == 0
    loss.backward()
    assert torch.equal(weight.grad, torch.zeros(WORDS, 8))  # type: ignore[arg-type]


def test_smoothed_losses_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4: 0.9 ln 2 + 0.1 (ln 2 + ln 4 + ln 4) / 3 for the first word."""
    logits = torch.tensor([[0.5, 0.25, 0.25]] * 2).log()
    found = smoothed_losses(logits, torch.tensor([0, 2]), 0.1)
    rest = 0.1 * (log(2) + 2 * log(4)) / 3
    assert found.tolist() == pytest.approx([0.9 * log(2) + rest, 0.9 * log(4) + rest])
    plain = smoothed_losses(logits, torch.tensor([0, 2]), 0.0)
    torch.testing.assert_close(plain, token_losses(logits, torch.tensor([0, 2])))
    # Of two texts, of one and of no token: their sums.
    assert text_sums(found[:1], torch.tensor([[0, 1], [0, 0]])).tolist() == [float(found[0]), 0.0]


def test_labels_of_a_decoder_by_hand() -> None:
    """Start, two words of a prompt, two words, the end, padding."""
    ids = torch.tensor([[7, 10, 11, 12, 13, SEP, PAD], [7, 10, 11, SEP, PAD, PAD, PAD]])
    mask = (ids != PAD).long()
    labels = decoder_labels(ids, mask, prompt_length=3)
    x = IGNORED
    assert labels.tolist() == [[x, x, x, 12, 13, SEP, x], [x, x, x, SEP, x, x, x]]
    assert decoder_labels(ids, mask)[1].tolist() == [x, 10, 11, SEP, x, x, x]
    assert ids[0, 0] == 7, "the texts are left as they were"
