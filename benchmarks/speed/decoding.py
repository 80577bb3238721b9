"""Decoding of videos in a fresh process: `python -m benchmarks.speed.decoding FOLDER DECODER`.

Prints, in JSON, clips a second of four frames each, and the MiB that decoding takes at most beside
the decoder's library.
"""

import json
import resource
import sys
from pathlib import Path
from time import perf_counter

from shared.data.readers.videos import decoder, read_frames


def decoded(folder: Path, name: str) -> tuple[float, float]:
    """Clips a second and MiB of all videos in a folder by a decoder, which must be installed."""
    decoder(name)
    paths, before = sorted(folder.iterdir()), peak_memory()
    started = perf_counter()
    for path in paths:
        read_frames(path, lambda count: range(0, count, max(1, count // 4))[:4], name)
    return len(paths) / (perf_counter() - started), peak_memory() - before


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(json.dumps(decoded(Path(sys.argv[1]), sys.argv[2])))
