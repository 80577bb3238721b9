"""Arrays that are costly to compute from files, kept on disk under a hash of all they depend on.

A file of arrays is mapped into memory, so that all ranks and worker processes share its pages.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from shared.data.errors import DataCorruptError
from shared.data.packages import waiting_for
from shared.data.readers.files import open_data, refusing
from shared.files import replacing

Arrays = dict[str, NDArray]


def cache_key(files: Iterable[str | Path], *settings: Any) -> str:
    """A name for what is computed from the content of `files`, in this order, and JSON values."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in files:
        with open_data(path) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def cached(folder: str | Path, key: str, make: Callable[[], Arrays]) -> tuple[Arrays, Path | None]:
    """The arrays of `folder`/<key>.safetensors, and that path; if they are not there, one process
    makes them and writes the file, and the others wait. One that can't be read is made anew and one
    that can't be written does without (the path is None), each with a warning."""
    path, arrays = Path(folder) / f"{key}.safetensors", None
    try:
        if (kept := _kept(path)) is None:
            with waiting_for(path.parent):
                if (kept := _kept(path)) is None:  # nor made by another process meanwhile
                    arrays = make()
                    with replacing(path) as file:
                        file.write(save(arrays, {"sha256": checksum(arrays)}))
                    kept = mapped(path)
        return kept, path
    except OSError as error:
        warnings.warn(f"{path}: not kept for the next run ({error})", stacklevel=3)
        return make() if arrays is None else arrays, None


def _kept(path: Path) -> Arrays | None:
    try:
        return mapped(path)
    except FileNotFoundError:
        return None
    except DataCorruptError as error:
        warnings.warn(f"{error}; it is made anew", stacklevel=3)
        return None


def mapped(path: Path) -> Arrays:
    """The arrays of a file that `cached` wrote; DataCorruptError unless it is as it was written."""
    open_data(path).close()  # no pipe, device or folder
    with refusing(f"{path}: damaged", Exception), safe_open(path, "pt") as file:
        # Of torch's tensors the pages of the file itself are the memory.
        arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        if file.metadata()["sha256"] != checksum(arrays):
            raise ValueError("its checksum is another")
    return arrays


def checksum(arrays: Arrays) -> str:
    """A SHA-256 of the arrays with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()
