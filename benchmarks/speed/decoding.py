"""Decoding of videos in a fresh process: `python -m benchmarks.speed.decoding FOLDER DECODER`.

Prints, in JSON, clips a second of four frames each, and the MiB of the process at its peak,
with the decoder's library.
"""

import json
import sys
from pathlib import Path
from time import perf_counter

from shared.data.readers.videos import decoder, read_frames
from shared.provenance import peak_bytes


def decoded(folder: Path, name: str) -> tuple[float, float]:
    """Clips a second of all videos in a folder by a decoder, which must be installed, and the MiB
    of this process at its peak."""
    decoder(name)
    paths = sorted(folder.iterdir())
    started = perf_counter()
    for path in paths:
        read_frames(path, lambda count: range(0, count, max(1, count // 4))[:4], name)
    return len(paths) / (perf_counter() - started), peak_bytes() / 2**20


if __name__ == "__main__":
    print(json.dumps(decoded(Path(sys.argv[1]), sys.argv[2])))
