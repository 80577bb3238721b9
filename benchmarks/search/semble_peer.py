"""Runs in the peer's environment: indexes a folder with `semble` and asks it questions.

Settings are JSON in argv[1]; what was found and how long it took is printed as one line of JSON.
Only the standard library besides semble and model2vec.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


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
    """Index, then ask every question `repeats` times in rounds, each variant in its turn.

    Settings:
        repository: folder. model: of the transformer. static: folder of the static model, made if
        absent. work: folder of the index. questions; top: hits a question; repeats; variants: name
        -> keywords of SembleIndex.search.
    """
    from importlib.metadata import version

    from semble import SembleIndex
    from semble.index.dense import load_model

    static = Path(settings["static"])
    distil_seconds = None if static.exists() else distil(settings["model"], static)
    load_model(str(static))  # kept by semble, as the other system's model is before it indexes
    start = time.perf_counter()
    index = SembleIndex.from_path(settings["repository"], model_path=str(static))
    saved = Path(settings["work"], "index")
    index.save(saved)
    index_seconds = time.perf_counter() - start
    return {
        "version": version("semble"),
        "model2vec": version("model2vec"),
        "distil_seconds": distil_seconds,
        "index_seconds": index_seconds,
        "index_bytes": sum(p.stat().st_size for p in saved.rglob("*") if p.is_file()),
        "items": index.stats.total_chunks,
        "files": index.stats.indexed_files,
        "variants": {
            name: ask(index, settings, keywords) for name, keywords in settings["variants"].items()
        },
    }


def ask(index: Any, settings: dict[str, Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Hits of each question, and seconds of each time it was asked; the first time is no measure
    and not counted."""
    questions, top = settings["questions"], settings["top"]
    hits = []
    for question in questions:
        results = index.search(question, top_k=top, **keywords)
        hits.append([(r.chunk.file_path, r.chunk.start_line, r.chunk.end_line) for r in results])
    seconds = []
    for _ in range(settings["repeats"]):
        for question in questions:
            start = time.perf_counter()
            index.search(question, top_k=top, **keywords)
            seconds.append(time.perf_counter() - start)
    return {"hits": hits, "seconds": seconds}


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get into the answer
    os.environ["SEMBLE_CACHE_LOCATION"] = chosen["work"]
    answers.write(json.dumps(main(chosen)))
    answers.close()
