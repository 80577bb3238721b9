"""The paper's transfer protocols (docs/papers/pcl.md, section 7)."""

from shared.tasks import frozen_features
from shared.tasks.linear_classification import LinearClassification


class LinearProbe(LinearClassification):
    """Linear classification on the frozen backbone (docs/papers/pcl.md, section 7.2); `freeze:
    false` fine-tunes (7.3)."""


class LowShotSVM(frozen_features.LowShotSVM):
    """VOC07 classification with few images per class (docs/papers/pcl.md, section 7.1)."""
