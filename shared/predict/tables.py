"""The files that predictions are written to."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.files import replacing
from shared.predict.inputs import PredictError


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table, whole or not at all; numbers that are not whole get six decimals.

    A file name that is no UTF-8 is written with its odd bytes spelled out. Returns `path`.
    """
    with replacing(path) as binary:
        file = io.TextIOWrapper(
            binary, "utf-8", errors="backslashreplace", newline="", write_through=True
        )
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([f"{v:.6f}" if isinstance(v, float | np.floating) else v for v in row])
        file.detach()
    return path


def write_picture(path: Path, picture: Image.Image) -> Path:
    """Write a PNG, whole or not at all. Returns `path`."""
    with replacing(path) as file:
        picture.save(file, "PNG")
    return path


def refuse_not_finite(values: NDArray[Any] | Sequence[float], path: object) -> None:
    """Refuse predictions that say nothing.

    Raises:
        PredictError: a value is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise PredictError(
            f"the model gives values that are not finite for {path}: its weights are damaged, or "
            "it was trained on images of another kind"
        )
