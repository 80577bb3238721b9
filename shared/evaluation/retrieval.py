"""Retrieval between images and texts: recalls, candidates by similarity, re-ranking by a matcher.

Shapes: N images of P tokens, T texts of at most L tokens, E joint dimension.

Scores are matrices (N, T) of a whole evaluation set, the same on every rank. What only the matcher
needs is bigger: an image's tokens stay on the rank that read it, which scores all its pairs; the
texts' tokens are shared, without padding. So each image is projected to keys and values once, and
a pair that both directions want is scored once.
Source: docs/papers/albef.md, section 7; salesforce/ALBEF@b9727e4 `Retrieval.py:evaluation,
itm_eval`.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from shared.evaluation.features import gather_rows

NOT_SCORED = -100.0
CUTOFFS = (1, 5, 10)

Precision = Literal["float32", "bfloat16"]


# --- recalls ---


def recalls(
    i2t: Tensor, t2i: Tensor, text_image: Tensor, medians: bool = False
) -> dict[str, float]:
    """Percent of images (`txt_r<K>`) and of texts (`img_r<K>`) whose match is among the first K.

    `txt_`: an image looks for texts by scores (N, T), and its best-ranked text counts; `img_`: a
    text looks for its image, in row `text_image` (T,), by scores (T, N). `txt_r_mean`,
    `img_r_mean` are means over K = 1, 5, 10, `r_mean` is the mean of the two. With `medians` also
    `txt_median_rank` and `img_median_rank`, from 1 on, no percent.

    Of equal scores the wrong ones come first: a constant score finds nothing. (In the official code
    their order is unspecified; with k >= 10 candidates the recalls cannot differ.)
    """
    metrics: dict[str, float] = {}
    for name, ranks in zip(("txt", "img"), ranks_of(i2t, t2i, text_image), strict=True):
        values = [100 * float((ranks < k).double().mean()) for k in CUTOFFS]
        metrics |= {f"{name}_r{k}": value for k, value in zip(CUTOFFS, values, strict=True)}
        metrics[f"{name}_r_mean"] = sum(values) / len(values)
        if medians:
            metrics[f"{name}_median_rank"] = 1 + float(ranks.double().quantile(0.5))
    metrics["r_mean"] = (metrics["txt_r_mean"] + metrics["img_r_mean"]) / 2
    return metrics


def ranks_of(i2t: Tensor, t2i: Tensor, text_image: Tensor) -> tuple[Tensor, Tensor]:
    """The ranks from 0 on of each image's best text, (N,), and of each text's image, (T,); see
    `recalls`."""
    images, texts = i2t.shape
    if t2i.shape != (texts, images) or text_image.shape != (texts,):
        raise ValueError(
            f"scores {tuple(i2t.shape)}, {tuple(t2i.shape)} and {len(text_image)} texts don't fit"
        )
    if i2t.isnan().any() or t2i.isnan().any():
        raise ValueError("a matching score is NaN: the network has diverged")
    if len(missing := (torch.bincount(text_image, minlength=images) == 0).nonzero()):
        raise ValueError(f"the image of row {int(missing[0])} has no text to be found")
    every = torch.arange(texts, device=text_image.device)

    own = i2t[text_image, every]
    best = own.new_full((images,), -torch.inf).scatter_reduce(0, text_image, own, "amax")
    found = torch.bincount(text_image[own == best[text_image]], minlength=images)
    text_ranks = (i2t >= best[:, None]).sum(dim=1) - found
    image_ranks = (t2i >= t2i[every, text_image][:, None]).sum(dim=1) - 1
    return text_ranks, image_ranks


# --- candidates ---


def candidates(similarity: Tensor, k: int | Literal["all"]) -> tuple[Tensor, Tensor]:
    """Pairs that are worth the matcher's time, (N, T) boolean each: the k texts most similar to
    each image, and the k images most similar to each text; "all" takes every pair."""
    nothing = torch.zeros_like(similarity, dtype=torch.bool)
    if k == "all":
        return ~nothing, ~nothing
    images, texts = similarity.shape
    if not 1 <= k <= min(images, texts):
        raise ValueError(
            f"k_test={k} candidates cannot be taken from {texts} texts and {images} images: choose "
            f"k_test from 1 to {min(images, texts)}, or k_test=all to score every pair"
        )
    texts_of_image = nothing.scatter(1, similarity.topk(k, dim=1).indices, True)
    return texts_of_image, nothing.scatter(0, similarity.topk(k, dim=0).indices, True)


# --- what an evaluation collects ---


@dataclass(frozen=True)
class Texts:
    """T texts without padding: `tokens` (sum of lengths, ...), hidden states or ids, and on the CPU
    `starts` and `lengths` (T,)."""

    tokens: Tensor
    starts: Tensor
    lengths: Tensor

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) -> tokens (R, L, ...), L that of the longest, and mask (R, L) int64; what it hides
        repeats the last token."""
        lengths = self.lengths[index, None]
        offsets = torch.arange(int(lengths.max()))
        places = self.starts[index, None] + torch.minimum(offsets, lengths - 1)
        device = self.tokens.device
        return self.tokens[places.to(device)], (offsets < lengths).long().to(device)

    def chunks(self, index: Tensor, positions: int) -> Iterator[Tensor]:
        """Texts (R,) in chunks of similar length, which padded to their longest text have at most
        `positions` tokens, or are a single text."""
        index = index[self.lengths[index].argsort(descending=True, stable=True)]
        while len(index):
            size = max(1, positions // int(self.lengths[index[0]]))
            yield index[:size]
            index = index[size:]

    def map(self, function: Callable[[Tensor, Tensor], Tensor], positions: int) -> "Texts":
        """Texts of what `function` makes of tokens (R, L, ...) and mask (R, L) of `chunks`."""
        parts = list(self.chunks(torch.arange(len(self.lengths)), positions))
        if not parts:
            return self
        pieces = []
        for part in parts:
            tokens, mask = self[part]
            pieces.append(function(tokens, mask)[mask.bool()])
        order = torch.cat(parts)
        lengths = self.lengths[order]
        starts = torch.empty_like(self.starts)
        starts[order] = lengths.cumsum(0) - lengths
        return Texts(torch.cat(pieces), starts, self.lengths)

    def to(self, device: torch.device | str) -> "Texts":
        return Texts(self.tokens.to(device), self.starts, self.lengths)


@dataclass(frozen=True)
class Gallery:
    """An evaluation set by ascending entry number; equal on every rank but for `own` and tokens."""

    entries: Tensor  # (N,) numbers of the images' entries
    image_features: Tensor  # (N, E) float32
    text_features: Tensor  # (T, E) float32
    text_image: Tensor  # (T,) row of each text's image
    texts: Texts
    hard_text: Tensor | None  # (T,) entry whose first text is a hard negative of each text
    own: Tensor  # rows of this rank's images
    image_tokens: list[Tensor]  # of those, each (P, C)
    order: Tensor  # (N,) where each row stands if the ranks' own rows are joined

    def similarity(self) -> Tensor:
        """(N, T) dot products of features, without temperature."""
        return self.image_features @ self.text_features.T


class Collector:
    """Takes what a rank encodes, batch by batch, and makes the gallery of all ranks; tokens are
    kept as `dtype`."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.dtype = dtype
        self.rows: dict[str, list[Tensor]] = {}
        self.image_tokens: list[Tensor] = []

    def add(
        self,
        images: tuple[Tensor, Tensor, Tensor],
        texts: tuple[Tensor, Tensor, Tensor, Tensor],
        hard_text: Tensor | None = None,
    ) -> None:
        """Add images, entry numbers (B,), features (B, E), tokens (B, P, C), and their texts, entry
        numbers (T,) of their images, features (T, E), tokens (T, L, ...), mask (T, L)."""
        entries, features, tokens = images
        text_entries, text_features, text_tokens, mask = texts
        taken = {
            "entry": entries,
            "features": features.float(),
            "text_entry": text_entries,
            "text_features": text_features.float(),
            "length": mask.sum(dim=1),
            "token": self._kept(text_tokens[mask.bool()]),
        }
        if hard_text is not None:
            taken["hard_text"] = hard_text
        for name, value in taken.items():
            self.rows.setdefault(name, []).append(value.cpu())
        self.image_tokens += self._kept(tokens).cpu().unbind()

    def gallery(self, device: torch.device | str = "cpu") -> Gallery:
        """All ranks' images and texts; texts whose image is missing are left out with a warning.
        NCCL passes rows on `device`."""
        own = {name: torch.cat(values) for name, values in self.rows.items()}
        rows = gather_rows(own, device)
        if not rows or not len(rows["entry"]):
            raise ValueError("no image to retrieve: the evaluation's loader gave no batch")
        order = rows["entry"].argsort()
        entries = rows["entry"][order]
        if len(twice := entries[1:][entries.diff() == 0]):
            raise ValueError(
                f"image {int(twice[0])} was evaluated twice: use a loader that repeats none, as "
                "shared.data.loading.loader.EvaluationLoader"
            )
        image = torch.searchsorted(entries, rows["text_entry"]).clamp_max(len(entries) - 1)
        known = (entries[image] == rows["text_entry"]).nonzero()[:, 0]
        if left_out := len(image) - len(known):
            warnings.warn(f"{left_out} texts are left out with unreadable images", stacklevel=2)
        known = known[image[known].argsort(stable=True)]
        starts = rows["length"].cumsum(0) - rows["length"]
        return Gallery(
            entries=entries,
            image_features=rows["features"][order],
            text_features=rows["text_features"][known],
            text_image=image[known],
            texts=Texts(rows["token"], starts[known], rows["length"][known]),
            hard_text=rows["hard_text"][known] if "hard_text" in rows else None,
            own=torch.searchsorted(entries, own["entry"]) if own else entries[:0],
            image_tokens=self.image_tokens,
            order=order,
        )

    def _kept(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.dtype) if tokens.is_floating_point() else tokens


# --- re-ranking ---


class Matcher(NamedTuple):
    """The network that scores pairs, in three parts: of an image, of a text, of a pair."""

    project: Callable[[Tensor], Any]  # image tokens (1, P, C) -> what `score` needs of an image
    read: Callable[[Tensor, Tensor], Tensor]  # tokens (R, L, ...) and mask (R, L) -> for `score`
    score: Callable[[Any, Tensor, Tensor], Tensor]  # of both and the mask -> (R,) scores


@torch.no_grad()
def score_pairs(
    gallery: Gallery,
    wanted: Tensor,
    matcher: Matcher,
    chunk: int,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> Tensor:
    """(N, T) float32 scores of the `wanted` pairs (N, T), `NOT_SCORED` elsewhere; the same on every
    rank, each of which reads all texts and scores the pairs of its own images.

    `chunk` is the most text positions (texts times their tokens) in one pass, which bounds the
    memory; "bfloat16" runs the matcher under autocast.
    """
    device = torch.device(device)
    wanted = wanted.cpu()
    scores = torch.full((len(gallery.own), wanted.shape[1]), NOT_SCORED, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        texts = gallery.texts.to(device).map(matcher.read, chunk)
        for row, (image, tokens) in enumerate(zip(gallery.own, gallery.image_tokens, strict=True)):
            index = wanted[image].nonzero()[:, 0]
            if not len(index):
                continue
            context = matcher.project(tokens[None].to(device))
            for part in texts.chunks(index, chunk):
                found = matcher.score(context, *texts[part])
                scores[row, part.to(device)] = found.float()
    return gather_rows({"scores": scores}, device)["scores"][gallery.order]
