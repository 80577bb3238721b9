"""The frame of CasCode's models: initial weights, optimiser, evaluation by vectors and by pairs.

Shapes: B texts of a batch, Q queries, N candidates, d vector size.
Source: docs/papers/cascode.md, sections 3.5, 4 and 7; microsoft/CodeBERT@c0de43d `train` of
GraphCodeBERT's and UniXcoder's code search.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.cascode.evaluation import (
    Ranked,
    Vectors,
    average,
    rank_codes,
    re_rank,
    shared_scores,
    write_per_query,
)
from methods.cascode.gain import write_gain
from methods.cascode.model import CodeEncoder, PairHead, Pooling
from methods.cascode.official import load_initial
from methods.cascode.scoring import score_pairs
from methods.cascode.tokenizer import CodeTokenizer
from shared.training.method import Method

log = logging.getLogger(__name__)
Batch = Mapping[str, Any]


class CodeSearch(Method):
    """What all models share: an encoder, AdamW without decay, a rate that falls linearly to 0.

    A subclass that judges pairs sets `k_test` and `classifier`; its evaluation then re-ranks.

    Args:
        text, pooling, normalize: see `CodeEncoder`.
        lr, betas, eps, weight_decay: of AdamW; every parameter is decayed alike.
        clip_norm: largest norm of all gradients together.
        frozen_layers: so many layers, and the embeddings, are not trained.
        initial: what training starts from, see `official.load_initial`; null: random weights.
        seed: of the negatives.
    """

    tokenizer: CodeTokenizer  # of the data
    lengths: Mapping[str, int]  # of query, code and pair, in tokens
    k_test: Sequence[int] = ()  # candidates to re-rank
    classifier: PairHead

    def __init__(
        self,
        text: Mapping[str, Any],
        pooling: Pooling = "mean",
        normalize: bool = True,
        lr: float = 2e-5,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float = 1.0,
        frozen_layers: int = 0,
        initial: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.encoder = CodeEncoder(text, pooling, normalize)
        self.encoder.freeze(frozen_layers)
        self.adamw: dict[str, Any] = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
        }
        self.clip_norm, self.initial, self.seed = clip_norm, initial, seed
        self.vectors = Vectors()

    def attach(self, datamodule: Any) -> None:
        """Take tokeniser and lengths of the data, whose vocabulary must fit the embeddings."""
        self.tokenizer, self.lengths = datamodule.tokenizer, datamodule.lengths
        embeddings = self.encoder.text.embeddings.word
        if len(self.tokenizer) > embeddings.num_embeddings:
            raise ValueError(
                f"method.text.vocab_size={embeddings.num_embeddings} is less than the "
                f"{len(self.tokenizer)} tokens of data.tokenizer"
            )
        if self.tokenizer.pad_id != self.encoder.text.pad_id:
            raise ValueError(
                f"method.text.pad_id={self.encoder.text.pad_id}, but data.tokenizer pads with "
                f"{self.tokenizer.pad_id}"
            )

    def setup(self, stage: str) -> None:
        """Load the initial weights, unless others were loaded; a checkpoint's come after."""
        self.attach(self.trainer.datamodule)  # type: ignore[attr-defined]
        if stage == "fit" and self.initial is not None:
            log.info("%s", load_initial(self, self.initial))

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # Not the fused one: it takes float16's scale out of the gradients too late for clipping.
        optimizer = torch.optim.AdamW(trained, **self.adamw)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def _rate(self, step: int) -> float:
        # Lightning builds the loaders to answer. Asked before a checkpoint is restored, it would
        # never give them their positions, and a resumed run would begin its epoch anew.
        return 1 - step / self.trainer.estimated_stepping_batches if step else 1.0

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip_gradients(optimizer, self.clip_norm, "norm")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if hasattr(self, "tokenizer"):
            checkpoint["tokenizer"] = self.tokenizer.state()
            checkpoint["lengths"] = dict(self.lengths)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.initial = None

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B, d) the vectors of queries or codes."""
        return self.searcher(batch["ids"], batch["mask"])

    @property
    def searcher(self) -> CodeEncoder:
        """The encoder whose vectors candidates are found by."""
        return self.encoder

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.vectors.add(batch, self.searcher(batch["ids"], batch["mask"]))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._evaluate("val")

    def on_test_epoch_end(self) -> None:
        self._evaluate("test")

    def _rank(self, queries: Tensor, codes: Tensor, split: Any, testing: bool) -> Ranked:
        if not self.k_test:
            return rank_codes(queries, codes, split, testing)
        depths = self.k_test if testing else self.k_test[:1]
        return re_rank(
            queries, codes, split, depths, lambda pairs: shared_scores(pairs, self._score)
        )

    def _score(self, pairs: Sequence[Any]) -> Tensor:
        limits = self.lengths["pair"], self.lengths["query"]
        with self.trainer.precision_plugin.forward_context():  # which is not set between steps
            return score_pairs(self.encoder, self.classifier, self.tokenizer, pairs, *limits)

    def _evaluate(self, stage: str) -> None:
        splits = self.trainer.datamodule.split(stage)  # type: ignore[attr-defined]
        rankings = {}
        for split in splits:
            queries = self.vectors.take(split.language, "query", len(split.queries))
            codes = self.vectors.take(split.language, "code", len(split.codes))
            rankings[split.language] = self._rank(queries, codes, split, stage == "test")
        self.log_dict({f"{stage}/{name}": value for name, value in average(rankings).items()})
        if stage != "test" or not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.default_root_dir)
        write_per_query(folder, rankings)
        if changes := [ranked.gain for ranked in rankings.values() if ranked.gain is not None]:
            beside = folder / "checkpoints"  # where the search tool looks
            about = ", ".join(
                f"{len(split.queries):,} {split.language} test queries among {len(split.codes):,}"
                for split in splits
            )
            points = torch.cat(changes).double().numpy()
            write_gain(beside if beside.is_dir() else folder, points, about)
