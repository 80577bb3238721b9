"""Which kind of input is meant."""

import glob
from collections.abc import Sequence
from pathlib import Path

from shared.data.captioned.folder_pairs import FolderPairs
from shared.data.captioned.json_pairs import JsonPairs
from shared.data.captioned.records import Source
from shared.data.captioned.tar_pairs import TarPairs
from shared.data.errors import WorkError


def open_source(inputs: Sequence[str], image_root: str | None) -> Source:
    """The input that paths name: one .json or .jsonl, tar shards (also by patterns, or in a folder)
    or one folder of images. `image_root` is of JSON alone, by default the file's folder."""
    paths: list[Path] = []
    for name in inputs:
        found = [name] if Path(name).exists() else sorted(glob.glob(name))
        if not found:
            raise WorkError(f"{name}: no such file or folder")
        paths += map(Path, found)
    if len(paths) == 1 and paths[0].is_dir():
        if not (shards := sorted(paths[0].glob("*.tar"))):
            return FolderPairs(paths[0])
        paths = shards
    suffixes = {path.suffix for path in paths}
    if suffixes == {".tar"}:
        return TarPairs(paths)
    if len(paths) == 1 and suffixes <= {".json", ".jsonl"}:
        root = Path(image_root) if image_root else paths[0].parent
        if not root.is_dir():
            raise WorkError(f"{root} is no folder: --image-root names it")
        return JsonPairs(paths[0], root)
    wanted = "one .json or .jsonl file, one folder of images, or tar shards"
    raise WorkError(f"{' '.join(inputs)[:200]}: give {wanted}")
