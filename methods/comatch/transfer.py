"""The paper's transfer protocol: linear SVMs on features of the frozen backbone."""

from shared.tasks import frozen_features


class LowShotSVM(frozen_features.LowShotSVM):
    """VOC07 and Places205 on the backbone that CoMatch has trained on ImageNet."""
