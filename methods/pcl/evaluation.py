"""The paper's transfer protocols (docs/papers/pcl.md, section 7)."""

from shared.tasks import frozen_features, linear_classification


class LinearProbe(linear_classification.LinearClassification):
    """Classification on the frozen backbone (section 7.2); `freeze: false` fine-tunes (7.3)."""


class LowShotSVM(frozen_features.LowShotSVM):
    """VOC07 classification with few images per class (section 7.1)."""
