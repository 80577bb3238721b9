"""Arrays that are costly to compute from files, kept on disk under a hash of all they depend on."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.readers.files import open_data, read_arrays
from shared.files import replacing

Arrays = dict[str, NDArray]


def cache_key(files: Iterable[str | Path], *settings: Any) -> str:
    """A name for what is computed from the content of `files`, in this order, and JSON values."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in files:
        with open_data(path) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def cached(folder: str | Path | None, key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of `folder`/<key>.npz; if they are not there, `make` them and write the file. One
    that can't be read is made anew and one that can't be written does without, each with a warning.
    `folder` None keeps nothing."""
    if folder is None:
        return make()
    path = Path(folder) / f"{key}.npz"
    try:
        return read_arrays(path)
    except DataNotFoundError:
        pass
    except DataCorruptError as error:
        warnings.warn(f"{path}: damaged, made anew ({error})", stacklevel=2)
    arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        warnings.warn(f"{path}: not kept for the next run ({error})", stacklevel=2)
    return arrays
