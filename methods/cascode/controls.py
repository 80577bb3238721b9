"""CasCode's negative control; `conf/reproduce/cascode.yaml` names it."""

from methods.cascode.losses import Pairs
from methods.cascode.module import Batch, Slow


class ShuffledPairs(Slow):
    """Calls each query with another one's code a match; negatives are shifted alike."""

    def pairs(self, batch: Batch) -> Pairs:
        pairs = super().pairs(batch)
        return pairs._replace(codes=(pairs.codes + 1) % len(batch["indices"]))
