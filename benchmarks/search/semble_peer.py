"""Runs in the peer's environment: indexes a folder with `semble` and asks it questions.

Settings are JSON in argv[1]; what was found and how long it took is printed as one line of JSON.
Only the standard library besides semble and model2vec.
"""

import json
import os
import sys
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


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Index, then ask every question; `variants` names keywords of SembleIndex.search."""
    from importlib.metadata import version

    from semble import SembleIndex
    from semble.index.dense import load_model

    static, saved = Path(settings["static"]), Path(settings["work"], "index")
    distil_seconds = None if static.exists() else distil(settings["model"], static)
    load_model(str(static))  # kept by semble, as the other system's model is before it indexes
    start = time.perf_counter()
    index = SembleIndex.from_path(settings["repository"], model_path=str(static))
    index.save(saved)
    index_seconds = time.perf_counter() - start
    variants = {}
    for name, keywords in settings["variants"].items():

        def search(question: str, keywords: dict[str, Any] = keywords) -> list[tuple]:
            chunks = [r.chunk for r in index.search(question, top_k=settings["top"], **keywords)]
            return [(chunk.file_path, chunk.start_line, chunk.end_line) for chunk in chunks]

        variants[name] = ask(search, settings["questions"], settings["repeats"])
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


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get into the answer
    os.environ["SEMBLE_CACHE_LOCATION"] = chosen["work"]
    answers.write(json.dumps(main(chosen)))
    answers.close()
