"""CasCode: a fast encoder to search with, a slow one to re-rank with, and one that is both.

Shapes: B pairs of this rank, L tokens, d vector size.
Source: docs/papers/cascode.md, sections 3.1 to 3.6; microsoft/CodeBERT@c0de43d `train` of
GraphCodeBERT's and UniXcoder's code search (fast) and of CodeBERT's pair classifier (slow).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.cascode.encoders import load_searcher
from methods.cascode.evaluation import (
    Ranked,
    Vectors,
    average,
    rank_by,
    rank_codes,
    re_rank,
    shared_scores,
    write_gain,
    write_per_query,
)
from methods.cascode.lexical import BM25
from methods.cascode.losses import (
    Pairs,
    hard_negatives,
    in_batch_nce,
    match_scores,
    matching_loss,
    pairs_with,
    uniform_negatives,
)
from methods.cascode.model import CodeEncoder, PairHead, Pooling
from methods.cascode.scoring import encode_pairs, score_pairs
from methods.cascode.tokenizer import CodeTokenizer
from shared.distributed import all_gather, own_rows, rank, world_size
from shared.randomness import torch_generator
from shared.training.method import Method

log = logging.getLogger(__name__)
Batch = Mapping[str, Any]
Negatives = Literal["uniform", "hard"]
HARD = 0.5  # share of hard negatives where they are asked for


class CodeSearch(Method):
    """The frame of all three: an encoder, AdamW without decay, a rate that falls linearly to 0.

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

    # --- training ---

    def attach(self, datamodule: Any) -> None:
        """Take tokeniser and lengths of the data.

        Raises:
            ValueError: the vocabulary does not fit the embeddings.
        """
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
        """Load the initial weights, unless others were loaded.

        Those of a checkpoint, if one is continued, come after.
        """
        self.attach(self.trainer.datamodule)  # type: ignore[attr-defined]
        if stage == "fit" and self.initial is not None:
            from methods.cascode.official import load_initial

            log.info("%s", load_initial(self, self.initial))

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # Not the fused one: it takes float16's scale out of the gradients too late for clipping.
        optimizer = torch.optim.AdamW(trained, **self.adamw)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def _rate(self, step: int) -> float:
        """From 1 to 0, of the learning rate."""
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

    # --- evaluation ---

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

    def rank(self, queries: Tensor, codes: Tensor, split: Any, testing: bool) -> Ranked:
        """Rank (N, d) codes for (Q, d) queries of a language's split."""
        return rank_codes(queries, codes, split, testing)

    def _evaluate(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        splits = data.split(stage)
        found = {}
        for split in splits:
            queries = self.vectors.take(split.language, "query", len(split.queries))
            codes = self.vectors.take(split.language, "code", len(split.codes))
            found[split.language] = self.rank(queries, codes, split, stage == "test")
        self.log_dict({f"{stage}/{name}": value for name, value in average(found).items()})
        if stage == "test" and self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            write_per_query(folder, found)
            beside = folder / "checkpoints"  # where the search tool looks
            about = ", ".join(
                f"{len(split.queries):,} {split.language} test queries among {len(split.codes):,}"
                for split in splits
            )
            write_gain(beside if beside.is_dir() else folder, found, about)


class Lexical(Method):
    """BM25 over subtokens, the baseline without a network: nothing is trained.

    Args:
        k1, b: see `BM25`.
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75):
        super().__init__()
        self.save_hyperparameters()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Everything is done at the end, from the texts."""

    def on_test_epoch_end(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        found = {}
        for split, (queries, codes) in zip(data.split("test"), data.texts("test"), strict=True):
            scores = BM25(codes, **self.hparams).scores(queries)
            found[split.language] = rank_by(torch.from_numpy(scores), split)
        self.log_dict({f"test/{name}": value for name, value in average(found).items()})
        if self.trainer.is_global_zero:
            write_per_query(self.trainer.default_root_dir, found)


class Contrast:
    """InfoNCE within a batch, for `Fast` and `Shared`.

    Args:
        temperature: tau, fixed; 1 with `normalize: false`, as GraphCodeBERT.
        symmetric: contrast codes with queries as well, and take the mean of both.
        gather: negatives of all ranks (with gradient); else those of this rank.
    """

    def __init__(self, temperature: float, symmetric: bool, gather: bool):
        self.temperature, self.symmetric, self.gather = temperature, symmetric, gather

    def __call__(self, queries: Tensor, codes: Tensor) -> Tensor:
        """(B, d), (B, d) -> the loss."""
        first = rank() * len(codes) if self.gather else 0
        loss = in_batch_nce(queries, self._everybodys(codes), self.temperature, first)
        if self.symmetric:
            other = in_batch_nce(codes, self._everybodys(queries), self.temperature, first)
            loss = (loss + other) / 2
        return loss

    def negatives(self, batch: int) -> int:
        """Of each query."""
        return batch * (world_size() if self.gather else 1) - 1

    def _everybodys(self, vectors: Tensor) -> Tensor:
        return all_gather(vectors, grad=True) if self.gather else vectors


class Fast(CodeSearch):
    """The first stage: codes and queries become vectors, trained by contrast within the batch.

    Args:
        temperature, symmetric, gather: see `Contrast`.
        frame: see `CodeSearch`.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        symmetric: bool = False,
        gather: bool = True,
        **frame: Any,
    ):
        super().__init__(**frame)
        self.save_hyperparameters()
        self.contrast = Contrast(temperature, symmetric, gather)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        queries = self.encoder(batch["query_ids"], batch["query_mask"])
        codes = self.encoder(batch["code_ids"], batch["code_mask"])
        self.log_train({"negatives": self.contrast.negatives(len(queries))})
        return self.total_loss({"loss_fast": self.contrast(queries, codes)}, {}, batch["indices"])


class PairJudge(CodeSearch):
    """What judges pairs: the head, the negatives, the cascade. For `Slow` and `Shared`.

    Args:
        negatives: "uniform": another code of the batch, all equally likely; "hard": for every
            second query, by chance, the most similar one.
        head_dropout: in the head.
        slow_micro_batch: pairs that pass the encoder at once, of which alone the activations are
            kept (the others' are computed again for the gradient); null: all.
        k_test: candidates to re-rank; the first one decides `mrr` and the validation.
        frame: see `CodeSearch`.
    """

    def __init__(
        self,
        negatives: Negatives = "uniform",
        head_dropout: float = 0.1,
        slow_micro_batch: int | None = None,
        k_test: Sequence[int] = (10, 100),
        **frame: Any,
    ):
        super().__init__(**frame)
        if negatives not in ("uniform", "hard"):
            raise ValueError(f'negatives are "uniform" or "hard", got {negatives!r}')
        if not k_test or min(k_test) < 1:
            raise ValueError(f"k_test lists numbers of candidates from 1 on, got {list(k_test)}")
        self.negatives, self.slow_micro_batch, self.k_test = negatives, slow_micro_batch, k_test
        self.classifier = PairHead(self.encoder.text.width, head_dropout)

    def draw_negatives(self, similarity: Tensor | None, size: int) -> Tensor:
        """(B,) the row of each query's negative, a function of the seed, the step and the place in
        the batch of all ranks.

        Args:
            similarity: (B, B) of queries and codes, for hard negatives.
        """
        generator = torch_generator(self.seed, self.global_step, "negatives")
        draws = own_rows(torch.rand(size * world_size(), 2, generator=generator)).to(self.device)
        uniform = uniform_negatives(draws[:, 0])
        if self.negatives == "uniform":
            return uniform
        assert similarity is not None
        return hard_negatives(similarity, uniform, draws[:, 1] < HARD)

    def judge(self, batch: Batch, pairs: Pairs) -> Tensor:
        """(2 B,) the score of each pair of the batch."""
        tokens = [
            (batch["query_tokens"][query], batch["code_tokens"][code])
            for query, code in zip(pairs.queries.tolist(), pairs.codes.tolist(), strict=True)
        ]
        limits = self.lengths["pair"], self.lengths["query"]
        rows = [self.tokenizer.pair(query, code, *limits) for query, code in tokens]
        size = self.slow_micro_batch
        if size is None or size >= len(rows):
            return self._judge_rows(rows)
        return torch.cat(
            [
                checkpoint(self._judge_rows, rows[start : start + size], use_reentrant=False)
                for start in range(0, len(rows), size)
            ]
        )

    def rank(self, queries: Tensor, codes: Tensor, split: Any, testing: bool) -> Ranked:
        depths = self.k_test if testing else self.k_test[:1]
        return re_rank(
            queries, codes, split, depths, lambda pairs: shared_scores(pairs, self._score)
        )

    def _judge_rows(self, rows: Sequence[Any]) -> Tensor:
        first = encode_pairs(self.encoder, self.tokenizer, rows, self.device)
        return match_scores(self.classifier(first))

    def _score(self, pairs: Sequence[Any]) -> Tensor:
        limits = self.lengths["pair"], self.lengths["query"]
        with self.trainer.precision_plugin.forward_context():  # which is not set between steps
            return score_pairs(self.encoder, self.classifier, self.tokenizer, pairs, *limits)


class Slow(PairJudge):
    """The second stage: judges a query and a code that it reads together.

    Args:
        fast: checkpoint of the first stage, which is not trained: it finds the candidates of the
            evaluation, and hard negatives.
        sabotage: negative control: "shuffled" calls each query with another one's code a match.
        pairs: see `PairJudge`.
    """

    def __init__(self, fast: str, sabotage: str | None = None, **pairs: Any):
        super().__init__(**pairs)
        self.save_hyperparameters()
        if sabotage not in (None, "shuffled"):
            raise ValueError(f'sabotage must be null or "shuffled", got {sabotage!r}')
        self.sabotage = sabotage
        self.fast = fast
        self._first_stage: list[CodeEncoder] = []  # in a list, it is no part of this module

    @property
    def searcher(self) -> CodeEncoder:
        if not self._first_stage:
            self._first_stage.append(load_searcher(self.fast).eval().requires_grad_(False))
        return self._first_stage[0].to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        similarity = self.similarity(batch) if self.negatives == "hard" else None
        pairs = pairs_with(self.draw_negatives(similarity, len(batch["indices"])))
        if self.sabotage == "shuffled":
            pairs = pairs._replace(codes=(pairs.codes + 1) % len(batch["indices"]))
        scores = self.judge(batch, pairs)
        return self.total_loss(
            {"loss_slow": matching_loss(scores, pairs.labels)}, {}, batch["indices"]
        )

    @torch.no_grad()
    def similarity(self, batch: Batch) -> Tensor:
        """(B, B) of the batch's queries and codes, by the first stage."""
        queries = self.searcher(batch["query_ids"], batch["query_mask"])
        return queries @ self.searcher(batch["code_ids"], batch["code_mask"]).T


class Shared(PairJudge):
    """One encoder for both stages, trained for both at once.

    Args:
        temperature, symmetric, gather: see `Contrast`.
        weight_fast, weight_slow: of the two losses.
        pairs: see `PairJudge`.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        symmetric: bool = False,
        gather: bool = True,
        weight_fast: float = 0.5,
        weight_slow: float = 0.5,
        **pairs: Any,
    ):
        super().__init__(**pairs)
        self.save_hyperparameters()
        self.contrast = Contrast(temperature, symmetric, gather)
        self.weights = {"loss_fast": weight_fast, "loss_slow": weight_slow}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        queries = self.encoder(batch["query_ids"], batch["query_mask"])
        codes = self.encoder(batch["code_ids"], batch["code_mask"])
        pairs = pairs_with(self.draw_negatives(queries @ codes.T, len(queries)))
        scores = self.judge(batch, pairs)
        self.log_train({"negatives": self.contrast.negatives(len(queries))})
        losses = {
            "loss_fast": self.contrast(queries, codes),
            "loss_slow": matching_loss(scores, pairs.labels),
        }
        return self.total_loss(losses, self.weights, batch["indices"])
