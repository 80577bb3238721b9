"""Top-k accuracy in percent, weighted by samples, exact over any number of ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric


@torch.no_grad()
def percent_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Percent of rows (B, C) whose largest logit is that of the label (B,)."""
    return 100 * (logits.argmax(dim=1) == labels).float().mean()


class TopKAccuracy(Metric):
    """Percent of samples whose label is among the k largest logits: `compute` weighs every sample
    equally, `batch_mean` every batch, a short last one too, as official scripts often do."""

    full_state_update = False
    correct: Tensor
    samples: Tensor
    batch_accuracies: Tensor
    batches: Tensor

    def __init__(self, k: int = 1):
        super().__init__()
        self.k = k
        for name in ("correct", "samples", "batch_accuracies", "batches"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits (N, C), labels (N,) int64."""
        top = logits.topk(min(self.k, logits.shape[1]), dim=1).indices
        correct = (top == labels[:, None]).any(dim=1).sum()
        # Not in place: states updated under inference mode could not be updated outside of it.
        self.correct = self.correct + correct
        self.samples = self.samples + len(labels)
        self.batch_accuracies = self.batch_accuracies + correct / max(1, len(labels))
        self.batches = self.batches + 1

    def compute(self) -> Tensor:
        return (100 * self.correct / self.samples).float()

    def batch_mean(self) -> Tensor:
        """Unweighted mean over this rank's batches."""
        return (100 * self.batch_accuracies / self.batches).float()
