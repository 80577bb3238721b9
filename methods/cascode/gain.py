"""What the second stage adds to the first, as the search tool reads it beside a checkpoint."""

from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.files import write_json

GAIN = "rerank_gain.json"


def write_gain(folder: str | PathLike[str], changes: NDArray[np.float64], data: str) -> None:
    """Write the mean of `changes` (Q,) of the reciprocal rank, in points, and its 95% bootstrap
    interval over the queries; `data` says what was asked. One query alone writes nothing."""
    if len(changes) < 2:
        return
    from scipy.stats import bootstrap

    points = 100 * changes
    drawn = bootstrap((points,), np.mean, method="percentile", rng=0).confidence_interval
    # Equal changes have an interval without width, which rounding may put beside their mean.
    gain = min(max(float(points.mean()), float(drawn.low)), float(drawn.high))
    content = {"gain": gain, "interval": [float(drawn.low), float(drawn.high)], "data": data}
    write_json(Path(folder) / GAIN, content, indent=None)
