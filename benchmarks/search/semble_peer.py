"""The peer's side, in the peer's environment: indexes a folder with `semble` and asks it questions.

Only the standard library besides semble and model2vec; `benchmarks.speed.serving` runs it.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def ask(
    search: Callable[[str], Any], questions: Sequence[str], repeats: int
) -> tuple[list[Any], list[float]]:
    """What each question finds, and the seconds of each time it is asked again, in rounds."""
    found, seconds = [search(question) for question in questions], []
    for _ in range(repeats):
        for question in questions:
            start = time.perf_counter()
            search(question)
            seconds.append(time.perf_counter() - start)
    return found, seconds


def distil(source: str, static: Path) -> float:
    """Make a static model of a transformer's folder by model2vec's defaults; seconds."""
    from model2vec.distill import distill

    start = time.perf_counter()
    model = distill(source, device="cpu")
    with tempfile.TemporaryDirectory(dir=static.parent) as folder:
        model.save_pretrained(f"{folder}/static")
        os.rename(f"{folder}/static", static)
    return time.perf_counter() - start


class Peer:
    """semble, with the `settings` that `systems.run_semble` gives."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["SEMBLE_CACHE_LOCATION"] = settings["work"]

    def measure(self) -> dict[str, Any]:
        """Index, then ask every question; `variants` names keywords of SembleIndex.search."""
        from importlib.metadata import version

        from semble import SembleIndex
        from semble.index.dense import load_model

        static, saved = Path(self.settings["static"]), Path(self.settings["work"], "index")
        distil_seconds = None if static.exists() else distil(self.settings["model"], static)
        load_model(str(static))  # kept by semble, as the other system's model is before it indexes
        start = time.perf_counter()
        index = SembleIndex.from_path(self.settings["repository"], model_path=str(static))
        index.save(saved)
        index_seconds = time.perf_counter() - start
        variants = {}
        for name, keywords in self.settings["variants"].items():

            def search(question: str, keywords: dict[str, Any] = keywords) -> list[tuple]:
                chunks = [
                    r.chunk for r in index.search(question, top_k=self.settings["top"], **keywords)
                ]
                return [(chunk.file_path, chunk.start_line, chunk.end_line) for chunk in chunks]

            variants[name] = ask(search, self.settings["questions"], self.settings["repeats"])
        return {
            "version": version("semble"),
            "model2vec": version("model2vec"),
            "distil_seconds": distil_seconds,
            "index_seconds": index_seconds,
            "index_bytes": sum(p.stat().st_size for p in saved.rglob("*") if p.is_file()),
            "items": index.stats.total_chunks,
            "files": index.stats.indexed_files,
            "variants": variants,
        }
