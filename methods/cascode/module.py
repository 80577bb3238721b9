"""CasCode: a fast encoder to search with, a slow one to re-rank with, and one that is both.

Shapes: B pairs or texts of this rank, Q queries, N candidates, L tokens, d vector size.
Source: docs/papers/cascode.md, sections 3.1 to 3.6, 4 and 7; microsoft/CodeBERT@c0de43d `train` of
GraphCodeBERT's and UniXcoder's code search (fast) and of CodeBERT's pair classifier (slow).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.cascode import evaluation, losses
from methods.cascode.gain import write_gain
from methods.cascode.model import CodeEncoder, PairHead, Pooling
from methods.cascode.official import load_initial, load_searcher
from methods.cascode.scoring import encode_pairs, score_pairs
from methods.cascode.tokenizer import CodeTokenizer
from shared.distributed import own_rows, world_size
from shared.losses.contrastive import InBatchContrast
from shared.randomness import torch_generator
from shared.training.method import Method

log = logging.getLogger(__name__)
Batch = Mapping[str, Any]
Negatives = Literal["uniform", "hard"]
HARD = 0.5  # share of hard negatives where they are asked for


class CodeSearch(Method):
    """What all models share: an encoder, AdamW without decay, a rate that falls linearly to 0.

    The evaluation of a subclass that holds a `judge` and a `classifier` re-ranks.
    `weight_decay` is of every parameter alike, `clip_norm` the largest norm of all gradients
    together. The first `frozen_layers` layers and the embeddings are not trained. Training starts
    from `initial` (see `official.load_initial`), or from random weights.
    """

    accumulates = True
    tokenizer: CodeTokenizer  # of the data
    lengths: Mapping[str, int]  # of query, code and pair, in tokens
    classifier: PairHead
    judge: "PairJudge | None" = None

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
        self.adamw = dict[str, Any](lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
        self.clip_norm, self.initial, self.seed = clip_norm, initial, seed
        self.vectors = evaluation.Vectors()

    def attach(self, datamodule: Any) -> None:
        """Take tokeniser and lengths of the data, whose vocabulary must fit the embeddings."""
        self.tokenizer, self.lengths = datamodule.tokenizer, datamodule.lengths
        rows, tokens = self.encoder.text.embeddings.word.num_embeddings, len(self.tokenizer)
        if tokens > rows:
            raise ValueError(f"method.text.vocab_size={rows}, but data.tokenizer has {tokens}")
        own, pad = self.encoder.text.pad_id, self.tokenizer.pad_id
        if pad != own:
            raise ValueError(f"method.text.pad_id={own}, but data.tokenizer pads with {pad}")

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

    def _rank(self, queries: Tensor, codes: Tensor, split: Any, testing: bool) -> evaluation.Ranked:
        if self.judge is None:
            return evaluation.rank_codes(queries, codes, split, testing)
        depths = self.judge.k_test if testing else self.judge.k_test[:1]
        return evaluation.re_rank(queries, codes, split, depths, self._score)

    def _score(self, pairs: Sequence[Any]) -> Tensor:
        limits = self.lengths["pair"], self.lengths["query"]
        with self.trainer.precision_plugin.forward_context():  # which is not set between steps
            return score_pairs(self.encoder, self.classifier, self.tokenizer, pairs, *limits)

    def log_evaluation(self, split: str) -> None:
        languages = self.trainer.datamodule.split(split)  # type: ignore[attr-defined]
        rankings = {}
        for part in languages:
            queries = self.vectors.take(part.language, "query", len(part.queries))
            codes = self.vectors.take(part.language, "code", len(part.codes))
            rankings[part.language] = self._rank(queries, codes, part, split == "test")
        means = evaluation.average(rankings)
        self.log_dict({f"{split}/{name}": value for name, value in means.items()})
        if split != "test" or not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.default_root_dir)
        evaluation.write_per_query(folder, rankings)
        if changes := [ranked.gain for ranked in rankings.values() if ranked.gain is not None]:
            beside = folder / "checkpoints"  # where the search tool looks
            about = ", ".join(
                f"{len(part.queries):,} {part.language} test queries among {len(part.codes):,}"
                for part in languages
            )
            points = torch.cat(changes).double().numpy()
            write_gain(beside if beside.is_dir() else folder, points, about)


class Fast(CodeSearch):
    """The first stage: codes and queries become vectors, trained by contrast within the batch; with
    `normalize: false` the `temperature` is 1, as GraphCodeBERT's."""

    def __init__(
        self, temperature: float = 0.05, symmetric: bool = False, gather: bool = True, **frame: Any
    ):
        super().__init__(**frame)
        self.save_hyperparameters()
        self.temperature, self.contrast = temperature, InBatchContrast(symmetric, gather)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        queries = self.encoder(batch["query_ids"], batch["query_mask"])
        codes = self.encoder(batch["code_ids"], batch["code_mask"])
        self.log_train({"negatives": self.contrast.negatives(len(queries))})
        loss = self.contrast(queries, codes, self.temperature)
        return self.total_loss({"loss_fast": loss}, {}, batch["indices"])


class PairJudge:
    """Draws and judges the pairs of a batch: the part that `Slow` and `Shared` hold.

    Args:
        method: whose encoder, tokeniser, lengths and `classifier` judge.
        negatives: "uniform": another code of the batch, all equally likely; "hard": for every
            second query, by chance, the most similar one.
        micro_batch: pairs that pass the encoder at once, of which alone the activations are kept
            (the others' are computed again for the gradient); null: all.
        k_test: candidates to re-rank; the first one decides `mrr` and the validation.
    """

    def __init__(
        self,
        method: CodeSearch,
        negatives: Negatives,
        micro_batch: int | None,
        k_test: Sequence[int],
    ):
        if negatives not in get_args(Negatives):
            raise ValueError(f'negatives are "uniform" or "hard", got {negatives!r}')
        if not k_test or min(k_test) < 1:
            raise ValueError(f"k_test lists numbers of candidates from 1 on, got {list(k_test)}")
        self.method, self.negatives = method, negatives
        self.micro_batch, self.k_test = micro_batch, k_test

    def draw_pairs(self, size: int, similarity: Tensor | None) -> losses.Pairs:
        """Each query of B = `size` with its own code and with a negative, (2 B,).

        Negatives are a function of the seed, the step and the place in the batch of all ranks; hard
        ones need the `similarity` (B, B) of queries and codes.
        """
        method = self.method
        generator = torch_generator(method.seed, method.global_step, "negatives")
        draws = own_rows(torch.rand(size * world_size(), 2, generator=generator)).to(method.device)
        negatives = losses.uniform_negatives(draws[:, 0])
        if self.negatives == "hard":
            assert similarity is not None
            negatives = losses.hard_negatives(similarity, negatives, draws[:, 1] < HARD)
        return losses.pairs_with(negatives)

    def __call__(self, batch: Batch, pairs: losses.Pairs) -> Tensor:
        """(2 B,) the score of each pair of the batch."""
        method, size = self.method, self.micro_batch
        limits = method.lengths["pair"], method.lengths["query"]
        rows = [
            method.tokenizer.pair(batch["query_tokens"][query], batch["code_tokens"][code], *limits)
            for query, code in zip(pairs.queries.tolist(), pairs.codes.tolist(), strict=True)
        ]
        if size is None or size >= len(rows):
            return self._scores(rows)
        starts = range(0, len(rows), size)
        return torch.cat(
            [checkpoint(self._scores, rows[i : i + size], use_reentrant=False) for i in starts]
        )

    def _scores(self, rows: Sequence[Any]) -> Tensor:
        method = self.method
        first = encode_pairs(method.encoder, method.tokenizer, rows, method.device)
        return losses.match_scores(method.classifier(first))


class Slow(CodeSearch):
    """The second stage: judges a query and a code that it reads together.

    Args:
        fast: checkpoint of the first stage, which is not trained: it finds the candidates of the
            evaluation, and hard negatives.
        negatives, slow_micro_batch, k_test: see `PairJudge`. head_dropout: in the head.
    """

    judge: PairJudge

    def __init__(
        self,
        fast: str,
        negatives: Negatives = "uniform",
        head_dropout: float = 0.1,
        slow_micro_batch: int | None = None,
        k_test: Sequence[int] = (10, 100),
        **frame: Any,
    ):
        super().__init__(**frame)
        self.save_hyperparameters()
        self.classifier = PairHead(self.encoder.text.width, head_dropout)
        self.judge, self.fast = PairJudge(self, negatives, slow_micro_batch, k_test), fast
        self._first_stage: list[CodeEncoder] = []  # in a list, it is no part of this module

    @property
    def searcher(self) -> CodeEncoder:
        if not self._first_stage:
            self._first_stage.append(load_searcher(self.fast).eval().requires_grad_(False))
        return self._first_stage[0].to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        pairs = self.pairs(batch)
        loss = losses.matching_loss(self.judge(batch, pairs), pairs.labels)
        return self.total_loss({"loss_slow": loss}, {}, batch["indices"])

    @torch.no_grad()
    def pairs(self, batch: Batch) -> losses.Pairs:
        """The pairs that are judged in a step; the first stage says how similar codes are."""
        similarity = None
        if self.judge.negatives == "hard":
            queries = self.searcher(batch["query_ids"], batch["query_mask"])
            similarity = queries @ self.searcher(batch["code_ids"], batch["code_mask"]).T
        return self.judge.draw_pairs(len(batch["indices"]), similarity)


class Shared(CodeSearch):
    """One encoder for both stages, trained for both at once; its arguments are theirs."""

    judge: PairJudge

    def __init__(
        self,
        temperature: float = 0.05,
        symmetric: bool = False,
        gather: bool = True,
        weight_fast: float = 0.5,
        weight_slow: float = 0.5,
        negatives: Negatives = "uniform",
        head_dropout: float = 0.1,
        slow_micro_batch: int | None = None,
        k_test: Sequence[int] = (10, 100),
        **frame: Any,
    ):
        super().__init__(**frame)
        self.save_hyperparameters()
        self.classifier = PairHead(self.encoder.text.width, head_dropout)
        self.judge = PairJudge(self, negatives, slow_micro_batch, k_test)
        self.temperature, self.contrast = temperature, InBatchContrast(symmetric, gather)
        self.weights = {"loss_fast": weight_fast, "loss_slow": weight_slow}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        queries = self.encoder(batch["query_ids"], batch["query_mask"])
        codes = self.encoder(batch["code_ids"], batch["code_mask"])
        pairs = self.judge.draw_pairs(len(queries), queries @ codes.T)
        scores = self.judge(batch, pairs)
        self.log_train({"negatives": self.contrast.negatives(len(queries))})
        parts = {
            "loss_fast": self.contrast(queries, codes, self.temperature),
            "loss_slow": losses.matching_loss(scores, pairs.labels),
        }
        return self.total_loss(parts, self.weights, batch["indices"])
