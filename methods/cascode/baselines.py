"""The baseline of code search without a network."""

from typing import Any

import torch

from methods.cascode.evaluation import average, rank_by, write_per_query
from methods.cascode.lexical import BM25
from shared.training.method import Method


class Lexical(Method):
    """BM25 over subtokens with its `k1` and `b`: nothing is trained."""

    def __init__(self, k1: float = 1.2, b: float = 0.75):
        super().__init__()
        self.save_hyperparameters()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Do nothing: the texts are scored at the end of the test."""

    def on_test_epoch_end(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rankings = {}
        for split, (queries, codes) in zip(data.split("test"), data.texts("test"), strict=True):
            scores = BM25(codes, **self.hparams).scores(queries)
            rankings[split.language] = rank_by(torch.from_numpy(scores), split)
        self.log_dict({f"test/{name}": value for name, value in average(rankings).items()})
        if self.trainer.is_global_zero:
            write_per_query(self.trainer.default_root_dir, rankings)
