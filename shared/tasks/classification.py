"""Accuracy of the networks that a module evaluates, as a part that it holds."""

from typing import Any

from torch import Tensor, nn

from shared.evaluation.accuracy import TopKAccuracy

Batch = dict[str, Tensor]


class Accuracies(nn.Module):
    """Top-1 and top-5 accuracy in percent, over all ranks, of one or several networks, each with a
    suffix of the metrics' names: "_ema" gives `val/top1_ema`."""

    def __init__(self, *suffixes: str):
        super().__init__()
        self.metrics: Any = nn.ModuleDict(
            {f"top{k}{suffix}": TopKAccuracy(k) for k in (1, 5) for suffix in suffixes or ("",)}
        )

    def update(self, logits: Tensor, labels: Tensor, suffix: str = "") -> None:
        """Count one batch of one network: logits (N, C), labels (N,)."""
        for k in (1, 5):
            self.metrics[f"top{k}{suffix}"].update(logits, labels)

    def compute(self, split: str) -> dict[str, Tensor]:
        """Accuracies by name, `<split>/top1` and so on; the counts start anew."""
        values = {f"{split}/{name}": metric.compute() for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return values
