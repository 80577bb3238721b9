"""Writing texts word by word: beam search and nucleus sampling, batched, with a cache.

Shapes: B texts to write, R rows that are written at once (B, or B times K beams, those of a text in
a row), P tokens of the prompt, n tokens so far, M at most, V words.
Source: docs/papers/blip.md, section 7.3; salesforce/BLIP@056a169 `models/blip.py:
BLIP_Decoder.generate`, whose beam search is that of transformers 4.15.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.nn.text_transformer import Context, LanguageHead, Past, TextTransformer

IMPOSSIBLE = -1e9  # the score of beams that do not exist yet


class CachedDecoder:
    """Logits of the next word, from a causal transformer that reads each token once.

    `context` is as of `TextTransformer.project`; R rows may share fewer contexts evenly. `room` is
    the longest text.
    """

    def __init__(
        self,
        transformer: TextTransformer,
        head: LanguageHead,
        context: Sequence[Context],
        room: int,
    ):
        self.transformer, self.head, self.context = transformer, head, context
        self.past = [Past(room) for _ in transformer.layers]

    def __call__(self, ids: Tensor) -> Tensor:
        """Read n more tokens (R, n) of each row; returns float32 logits (R, V) of the next one."""
        length = self.past[0].length + ids.shape[1]
        seen = ids.new_ones(1, length)
        hidden = self.transformer(ids, seen, self.context, causal=True, past=self.past)
        return self.head(hidden[:, -1], self.transformer.embeddings.word).float()

    def reorder(self, rows: Tensor) -> None:
        """Let row n continue what row `rows[n]` has read."""
        for past in self.past:
            past.reorder(rows)


@dataclass(frozen=True)
class Generation:
    """How a text is written; lengths count the prompt.

    `num_beams` beams, or with `sample` one draw from the most probable words: of the `top_k` (which
    BLIP takes unsaid from its library), the fewest whose probabilities exceed `top_p` together. The
    logits, or log-probabilities of beams, of words that were used, in the prompt too, are divided
    by `repetition_penalty`, or multiplied where negative.
    """

    max_length: int
    min_length: int
    end_id: int
    pad_id: int
    num_beams: int = 3
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    sample: bool = False
    top_k: int = 50
    top_p: float = 0.9

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.top_k < 1 or not 0 < self.top_p <= 1:
            raise ValueError(f"num_beams and top_k are at least 1, top_p in (0, 1]; got {self}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be positive")


class Generated(NamedTuple):
    """Texts (B, M) with the prompt and, unless M tokens were too few, the closing token, padded;
    and scores (B,): of a beam its mean log-probability, of a sample the sum of those drawn."""

    sequences: Tensor
    scores: Tensor


@torch.no_grad()
def generate(
    decoder: CachedDecoder,
    prompt: Tensor,
    settings: Generation,
    uniforms: Tensor | None = None,
) -> Generated:
    """Continue a prompt (B, P). Sampling takes numbers in [0, 1) (B, M - P), so that what one text
    becomes depends on no other."""
    if not prompt.shape[1] < settings.max_length:
        raise ValueError(
            f"max_length={settings.max_length} leaves no room after {prompt.shape[1]} tokens"
        )
    if not settings.sample:
        return _beam_search(decoder, prompt, settings)
    if uniforms is None:
        raise ValueError("sampling needs uniform numbers")
    return _sampled(decoder, prompt, settings, uniforms)


def discouraged(scores: Tensor, ids: Tensor, settings: Generation) -> Tensor:
    """Scores (R, V) after the repetition penalty for the words of `ids` (R, n), and without an end
    while these are fewer than the least length."""
    if settings.repetition_penalty != 1:
        used = scores.gather(1, ids)
        penalty = settings.repetition_penalty
        scores = scores.scatter(1, ids, torch.where(used < 0, used * penalty, used / penalty))
    if ids.shape[1] < settings.min_length:
        scores = scores.clone()
        scores[:, settings.end_id] = -torch.inf
    return scores


def nucleus(logits: Tensor, settings: Generation) -> Tensor:
    """Probabilities (R, V) of the words in the nucleus, 0 elsewhere, which sum to 1."""
    best, words = logits.topk(min(settings.top_k, logits.shape[1]), dim=1)
    probabilities = best.softmax(dim=1)
    before = probabilities.cumsum(dim=1) - probabilities
    kept = probabilities.masked_fill(before > settings.top_p, 0.0)
    kept = kept / kept.sum(dim=1, keepdim=True)
    return torch.zeros_like(logits).scatter(1, words, kept)


def _sampled(
    decoder: CachedDecoder, prompt: Tensor, settings: Generation, uniforms: Tensor
) -> Generated:
    ids, unread = prompt, prompt
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    scores = torch.zeros(len(ids), device=ids.device)
    for step in range(settings.max_length - prompt.shape[1]):
        probabilities = nucleus(discouraged(decoder(unread), ids, settings), settings)
        # The words in the order of their ids share the unit interval.
        ends = probabilities.double().cumsum(dim=1)
        target = uniforms[:, step, None].to(ends) * ends[:, -1:]
        word = torch.searchsorted(ends, target, right=True)
        scores += probabilities.gather(1, word)[:, 0].log().masked_fill(ended, 0.0)
        unread = word.masked_fill(ended[:, None], settings.pad_id)
        ids = torch.cat([ids, unread], dim=1)
        ended = ended | (unread[:, 0] == settings.end_id)
        if ended.all():
            break
    missing = settings.max_length - ids.shape[1]
    return Generated(F.pad(ids, (0, missing), value=settings.pad_id), scores)


def _beam_search(decoder: CachedDecoder, prompt: Tensor, settings: Generation) -> Generated:
    """Each step keeps the K best continuations that do not end and, of those that end and are
    among the K best of all, the K best so far by score over length, which counts the prompt and not
    the end."""
    size, device, beams = len(prompt), prompt.device, settings.num_beams
    first_row = torch.arange(size, device=device)[:, None] * beams  # of each text's beams
    ids = prompt.repeat_interleave(beams, dim=0)
    scores = torch.full((size, beams), IMPOSSIBLE, device=device)
    scores[:, 0] = 0.0
    finished = _Finished(size, settings, device)

    logits = decoder(prompt).repeat_interleave(beams, dim=0)
    decoder.reorder(torch.arange(size, device=device).repeat_interleave(beams))
    while True:
        length = ids.shape[1]
        steps = discouraged(logits.log_softmax(dim=1), ids, settings)
        words = steps.shape[1]
        sums = (steps.view(size, beams, words) + scores[:, :, None]).flatten(1)
        best, places = sums.topk(2 * beams, dim=1)
        origin, word = places // words, places % words
        ends = word == settings.end_id

        candidates = ids[first_row + origin[:, :beams]]
        finished.add(candidates, best[:, :beams], ends[:, :beams])
        finished.close(best[:, 0], length)

        # At most K of the 2 K end, since each beam ends in one way: K others are left.
        order = ends.long().argsort(dim=1, stable=True)[:, :beams]
        scores = best.gather(1, order)
        rows = (first_row + origin.gather(1, order)).flatten()
        unread = word.gather(1, order).view(-1, 1)
        ids = torch.cat([ids[rows], unread], dim=1)
        if ids.shape[1] == settings.max_length or finished.closed.all():
            break
        decoder.reorder(rows)
        logits = decoder(unread)
    every = torch.ones_like(scores, dtype=torch.bool)
    finished.add(ids.view(size, beams, -1), scores, every)
    return finished.best()


class _Finished:
    """The K best texts that have ended, for each of B; those of a closed one change no more."""

    def __init__(self, size: int, settings: Generation, device: torch.device):
        beams, longest = settings.num_beams, settings.max_length
        self.settings = settings
        self.scores = torch.full((size, beams), -torch.inf, device=device)
        shape = (size, beams, longest)
        self.sequences = torch.full(shape, settings.pad_id, dtype=torch.long, device=device)
        self.closed = torch.zeros(size, dtype=torch.bool, device=device)

    def add(self, sequences: Tensor, sums: Tensor, ends: Tensor) -> None:
        """Of texts (B, K, n) with sums of log-probabilities (B, K) take those that end."""
        length = sequences.shape[2]
        scores = sums / length**self.settings.length_penalty
        scores = scores.masked_fill(~ends | self.closed[:, None], -torch.inf)
        full = torch.full_like(self.sequences, self.settings.pad_id)
        full[:, :, :length] = sequences
        if length < self.settings.max_length:
            full[:, :, length] = self.settings.end_id
        joined = torch.cat([self.scores, scores], dim=1)
        self.scores, order = joined.sort(dim=1, descending=True, stable=True)
        order = order[:, : self.settings.num_beams]
        self.scores = self.scores[:, : self.settings.num_beams]
        both = torch.cat([self.sequences, full], dim=1)
        self.sequences = both.gather(1, order[:, :, None].expand(-1, -1, both.shape[2]))

    def close(self, best: Tensor, length: int) -> None:
        """Close where K texts have ended and none of n tokens, with sums of at most `best` (B,),
        would be better now."""
        hope = best / length**self.settings.length_penalty
        self.closed = self.closed | (self.scores[:, -1] >= hope)

    def best(self) -> Generated:
        """The best text of each."""
        return Generated(self.sequences[:, 0], self.scores[:, 0])
