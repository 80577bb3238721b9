"""Prediction of masked words and of answers, with soft targets of a momentum model.

Shapes: B texts, L tokens, V words, S selected positions of the whole batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


class MaskDraws(NamedTuple):
    """What masking draws, each (B, L); all but `words` boolean."""

    selected: Tensor
    replaced: Tensor
    random: Tensor
    words: Tensor

    @classmethod
    def from_uniforms(cls, uniforms: Tensor, vocab_size: int, probability: float) -> "MaskDraws":
        """BERT's rule from numbers in [0, 1) of shape (B, L, 4): `probability` selected; of those
        80 % masked; of the others half replaced by any word."""
        selected, replaced, random, word = uniforms.unbind(dim=-1)
        words = (word * vocab_size).long().clamp(max=vocab_size - 1)
        return cls(selected < probability, replaced < 0.8, random < 0.5, words)


def mask_tokens(
    ids: Tensor,
    draws: MaskDraws,
    pad_id: int,
    cls_id: int,
    mask_id: int,
    spared: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """(B, L) -> (ids with masks, labels), labels -100 where nothing is to be predicted. Padding,
    [CLS] and what is `spared` are never selected; [SEP] may be, unless it is one of these."""
    special = torch.tensor([pad_id, cls_id, *spared], device=ids.device)
    selected = draws.selected & ~torch.isin(ids, special)
    labels = ids.masked_fill(~selected, IGNORED)
    replaced = selected & draws.replaced
    random = selected & ~draws.replaced & draws.random
    return torch.where(random, draws.words, ids.masked_fill(replaced, mask_id)), labels


def decoder_labels(ids: Tensor, mask: Tensor, prompt_length: int = 1) -> Tensor:
    """(B, L) labels of a decoder's input, -100 at padding and at the first `prompt_length` tokens,
    which are given: the token at each place is what the place before it predicts."""
    labels = ids.masked_fill(~mask.bool(), IGNORED)
    labels[:, :prompt_length] = IGNORED
    return labels


def smoothed_losses(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """(S,) cross-entropies with (1 - smoothing) of the target and the rest evenly over all V words
    (docs/papers/blip.md, section 3.5). Logits (S, V), targets (S,)."""
    return F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)


def token_losses(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """(S,) losses: (1 - alpha) cross-entropy + alpha distillation. Logits (S, V), targets (S,)."""
    log_probs = logits.float().log_softmax(dim=-1)
    losses = F.nll_loss(log_probs, targets, reduction="none")
    if teacher_logits is None:
        return losses
    teacher = teacher_logits.detach().float().softmax(dim=-1)
    return (1 - alpha) * losses - alpha * (teacher * log_probs).sum(dim=-1)


def text_sums(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) sums of the values (S,) of each text's tokens; mask (B, L) of those that have one."""
    rows = mask.bool().nonzero()[:, 0]
    return values.new_zeros(len(mask)).index_add(0, rows, values)


def masked_lm_loss(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """The mean of `token_losses` of the selected positions; nothing selected gives 0 (with a
    gradient of 0), where the official code gives NaN."""
    log_probs = logits.float().log_softmax(dim=-1)
    total = (1 - alpha) * F.nll_loss(log_probs, labels, reduction="sum")
    if teacher_logits is not None:
        teacher = teacher_logits.detach().float().softmax(dim=-1)
        total = total - alpha * (teacher * log_probs).sum()
    return total / max(len(labels), 1)
