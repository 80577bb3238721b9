"""Evaluation of retrieval: rank by similarity, then let the matching head rank the best.

Source: docs/papers/albef.md, section 7; salesforce/ALBEF@b9727e4 `Retrieval.py:evaluation,
itm_eval`.
"""

from typing import Any, Literal, get_args

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from shared.data.image_text.pairs import ImageTextData
from shared.evaluation.retrieval import (
    NOT_SCORED,
    Collector,
    Gallery,
    Matcher,
    Precision,
    candidates,
    recalls,
    score_pairs,
)
from shared.tasks.image_text_method import Evaluation, ImageTextBatch

Score = Literal["itm", "itm+itc", "probability"]


class RetrievalEvaluation(Evaluation):
    """Ranks images and texts of a module with `encoders`, `ImageTextEncoders`, and `matching`.

    Metrics in percent, see `recalls`: `itc_txt_r1` ... `itc_r_mean` of the similarities of the
    features; `txt_r1` ... `r_mean` of the matching scores of the k most similar candidates; and if
    the batches name hard negatives, which no model chose, `itm_auc`, the area under the ROC curve
    of the matching head, for true pairs against pairs of an image with the negative of its text.

    Args:
        k_test: candidates of each image and of each text, "all" to score every pair.
        rerank: whether to ask the matching head: always, never, or in the "test" only.
        score: "itm": its logit of "match" alone; "itm+itc": plus the similarity, as BLIP does;
            "probability": that of "match", as ALPRO does, unrounded.
        precision: of the matching and of the tokens that are kept.
        medians: also the median ranks by the matching scores, as papers tell of videos.
        chunk: see `score_pairs`; fewer positions waste less on padding and use less of a GPU.
    """

    def __init__(
        self,
        k_test: int | Literal["all"],
        rerank: bool | Literal["test"] = True,
        score: Score = "itm",
        precision: Precision = "float32",
        chunk: int = 2048,
        medians: bool = False,
    ):
        if k_test != "all" and (not isinstance(k_test, int) or k_test < 1):
            raise ValueError(f"k_test is a positive number or all, got {k_test!r}")
        for name, value, known in (
            ("rerank", rerank, (True, False, "test")),
            ("score", score, get_args(Score)),
            ("precision", precision, get_args(Precision)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if chunk < 1:
            raise ValueError(f"chunk is a positive number of text positions, got {chunk}")
        self.k_test, self.rerank, self.score = k_test, rerank, score
        self.precision, self.chunk, self.medians = precision, chunk, medians
        self.collector = Collector(getattr(torch, precision))

    def check(self, data: Any) -> None:
        """Refuse, before training on `ImageTextData`, a `k_test` above the images of a split."""
        if not isinstance(data, ImageTextData):
            return
        splits = {"val": data.hparams["val_split"], "test": data.hparams["test_split"]}
        for kind, split in splits.items():
            if split is None or self.k_test == "all" or self.rerank not in (True, kind):
                continue
            if self.k_test > (images := len(data.evaluated(split))):
                raise ValueError(
                    f"method.evaluation.k_test={self.k_test} candidates, but split {split!r} has "
                    f"{images} images: choose k_test from 1 to {images}, or all"
                )

    @torch.no_grad()
    def collect(self, module: Any, batch: ImageTextBatch) -> None:
        """Encode the images and texts of a batch: `images` (B, 3, S, S), `indices` (B,);
        `input_ids`, `attention_mask` (T, L), `text_image` (T,) the entry of each text's image. For
        `itm_auc`, `hard_text` (T,), the entry whose first text is each one's hard negative, or -1.
        """
        image_tokens, image = module.encoders.encode_image(batch["images"])
        longest = int(batch["attention_mask"].sum(dim=1).max())
        ids, mask = (batch[name][:, :longest] for name in ("input_ids", "attention_mask"))
        text_tokens, text = module.encoders.encode_text(ids, mask)
        self.collector.add(
            (batch["indices"], image, image_tokens),
            (batch["text_image"], text, text_tokens, mask),
            batch.get("hard_text"),
        )

    def metrics(self, module: Any, testing: bool = False) -> dict[str, float]:
        """Metrics of all that was collected on all ranks, the same on each of them."""
        gallery = self.collector.gallery(module.device)
        self.collector = Collector(getattr(torch, self.precision))
        similarity = gallery.similarity()
        found = recalls(similarity, similarity.T, gallery.text_image)
        metrics = {f"itc_{name}": value for name, value in found.items()}
        if self.rerank is True or (testing and self.rerank == "test"):
            scores = self.scores(module, gallery)
            metrics |= recalls(*scores, gallery.text_image, self.medians)
        if gallery.hard_text is not None:
            metrics["itm_auc"] = self._auc(module, gallery, gallery.hard_text)
        return metrics

    def scores(self, module: Any, gallery: Gallery) -> tuple[Tensor, Tensor]:
        """By which images rank texts (N, T), and texts rank images (T, N): of the candidates of
        each, `NOT_SCORED` elsewhere. A pair that both directions want is scored once."""
        similarity = gallery.similarity()
        chosen = candidates(similarity, self.k_test)
        of_probability = self.score == "probability"
        scores = self._score(module, gallery, chosen[0] | chosen[1], of_probability)
        if self.score == "itm+itc":
            scores = scores + similarity
        i2t, t2i = (scores.masked_fill(~there, NOT_SCORED) for there in chosen)
        return i2t, t2i.T

    def _auc(self, module: Any, gallery: Gallery, hard: Tensor) -> float:
        """Of true pairs against the same images with their texts' hard negatives."""
        entries = gallery.entries
        other = torch.searchsorted(entries, hard).clamp_max(len(entries) - 1)
        texts = (entries[other] == hard).nonzero()[:, 0]  # else left out with its image
        if not len(texts):
            raise ValueError("no text has a hard negative among the texts of this evaluation")
        images = gallery.text_image[texts]
        negatives = torch.searchsorted(gallery.text_image, other[texts])  # the first text of each
        wanted = torch.zeros(len(entries), len(hard), dtype=torch.bool)
        wanted[images, texts] = wanted[images, negatives] = True
        scores = self._score(module, gallery, wanted, of_probability=True)
        both = torch.cat([scores[images, texts], scores[images, negatives]])
        matches = torch.arange(len(both)) < len(texts)
        return 100 * float(roc_auc_score(matches.numpy(), both.numpy()))

    def _score(self, module: Any, gallery: Gallery, wanted: Tensor, of_probability: bool) -> Tensor:
        """(N, T) scores of the wanted pairs: the logit of "match", or that of its probability."""
        text_encoder = module.encoders.text_encoder

        def score(*pair: Any) -> Tensor:
            logits = module.matching.quick_logits(text_encoder, *pair)
            return logits[:, 1] - logits[:, 0] if of_probability else logits[:, 1]

        matcher = Matcher(text_encoder.project, module.encoders.read_text, score)
        return score_pairs(gallery, wanted, matcher, self.chunk, module.device, self.precision)
