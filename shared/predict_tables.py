"""CSV files of predictions."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Writes beside, then renames; numbers that are not whole get six decimals. Returns `path`."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([f"{v:.6f}" if isinstance(v, float | np.floating) else v for v in row])
    os.replace(temporary, path)
    return path
