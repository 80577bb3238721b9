"""Masked language modelling: which tokens are masked, and the distilled loss by hand."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.losses.language import IGNORED, MaskDraws, mask_tokens, masked_lm_loss

PAD, UNK, CLS, SEP, MASK, WORDS = 0, 1, 2, 3, 4, 30


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed))


def draws(*rows: list[list[int]]) -> MaskDraws:
    """One text: selected, replaced, random and words."""
    selected, replaced, random, words = (torch.tensor([row]) for row in rows)
    return MaskDraws(selected.bool(), replaced.bool(), random.bool(), words)


def test_masking_by_hand() -> None:
    """[CLS], masked, by chance another word, itself, not selected, [SEP], padding."""
    ids = torch.tensor([[CLS, 10, 11, 12, 13, SEP, PAD]])
    given = draws(
        [1, 1, 1, 1, 0, 1, 1],
        [1, 1, 0, 0, 1, 1, 1],
        [1, 1, 1, 0, 1, 0, 1],
        [20, 21, 22, 23, 24, 25, 26],
    )  # type: ignore[arg-type]
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


def test_the_last_word_is_in_reach_of_a_large_vocabulary() -> None:
    """30,522 times the largest float below 1 rounds to 30,522."""
    largest = torch.full((1, 1, 4), 1 - 2**-24)
    assert int(MaskDraws.from_uniforms(largest, 30522, 0.15).words) == 30521
    assert int(MaskDraws.from_uniforms(largest, 2**25, 0.15).words) < 2**25


def test_shares() -> None:
    """15 % are selected; 80 % of them masked, 10 % random, 10 % kept; all words equally often."""
    ids = torch.full((400, 250), 7)
    given = MaskDraws.from_uniforms(uniforms(400, 250), WORDS, 0.15)
    masked, labels = mask_tokens(ids, given, PAD, CLS, MASK)
    selected = labels != IGNORED
    assert float(selected.float().mean()) == pytest.approx(0.15, abs=0.004)
    of_selected = masked[selected]
    share = [
        float((of_selected == MASK).float().mean()),
        float((of_selected == 7).float().mean()),
        float(((of_selected != MASK) & (of_selected != 7)).float().mean()),
    ]
    # A word drawn at random may be the mask or the word itself: once in 30 times each.
    assert share == pytest.approx(
        [0.8 + 0.1 / WORDS, 0.1 + 0.1 / WORDS, 0.1 * (1 - 2 / WORDS)], abs=0.012
    )
    counts = given.words.flatten().bincount(minlength=WORDS) / given.words.numel()
    assert float((counts - 1 / WORDS).abs().max()) < 0.003
    assert (masked[~selected] == 7).all()


@settings(max_examples=50, deadline=None)
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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_a_text_is_masked_by_its_own_draws(seed: int) -> None:
    ids = torch.randint(5, WORDS, (4, 9), generator=torch.Generator().manual_seed(seed))
    numbers = uniforms(4, 9, seed=seed)
    whole = mask_tokens(ids, MaskDraws.from_uniforms(numbers, WORDS, 0.5), PAD, CLS, MASK)
    alone = MaskDraws.from_uniforms(numbers[2:3], WORDS, 0.5)
    for found, expected in zip(mask_tokens(ids[2:3], alone, PAD, CLS, MASK), whole, strict=True):
        assert torch.equal(found[0], expected[2])


# --- the loss ---


def test_loss_by_hand() -> None:
    """Two positions of two words; the student's odds are 3 to 1 and even, the teacher's even and
    1 to 4."""
    logits = torch.tensor([[log(3.0), 0.0], [0.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.0], [0.0, log(4.0)]])
    labels = torch.tensor([0, 1])
    ce = -(log(3 / 4) + log(1 / 2)) / 2
    kd = -((0.5 * log(3 / 4) + 0.5 * log(1 / 4)) + log(1 / 2)) / 2
    for alpha in (0.0, 0.4, 1.0):
        found = masked_lm_loss(logits, labels, teacher, alpha)
        assert float(found) == pytest.approx((1 - alpha) * ce + alpha * kd)
    assert float(masked_lm_loss(logits, labels)) == pytest.approx(ce)


def test_loss_is_the_mean_over_the_selected_of_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, WORDS, generator=generator)
    labels = torch.randint(0, WORDS, (3, 5), generator=generator)
    labels[0] = IGNORED
    labels[1, 1:] = IGNORED
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    selected = labels != IGNORED
    torch.testing.assert_close(masked_lm_loss(logits[selected], labels[selected]), expected)


def test_gradient_is_that_of_soft_targets_and_none_is_the_teachers() -> None:
    """(softmax - target) / S, the target mixed of label and teacher."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, WORDS, generator=generator, requires_grad=True)
    teacher = torch.randn(4, WORDS, generator=generator, requires_grad=True)
    labels = torch.tensor([3, 0, 29, 3])
    masked_lm_loss(logits, labels, teacher, 0.3).backward()
    target = 0.7 * torch.nn.functional.one_hot(labels, WORDS) + 0.3 * teacher.softmax(dim=1)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, ((logits.softmax(dim=1) - target) / 4).detach())
    assert teacher.grad is None


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_nothing_selected_gives_zero_with_a_gradient_of_zero(alpha: float) -> None:
    """The official code gives NaN."""
    weight = torch.ones(WORDS, 8, requires_grad=True)
    hidden = torch.zeros(0, 8)
    logits, labels = hidden @ weight.T, torch.zeros(0, dtype=torch.long)
    loss = masked_lm_loss(logits, labels, torch.zeros(0, WORDS), alpha)
    assert float(loss.detach()) == 0
    loss.backward()
    assert torch.equal(weight.grad, torch.zeros(WORDS, 8))  # type: ignore[arg-type]


def test_loss_has_full_precision() -> None:
    logits = torch.tensor([[0.0, 8.0]]).bfloat16()
    found = masked_lm_loss(logits, torch.tensor([1]), logits, 0.5)
    assert found.dtype == torch.float32
