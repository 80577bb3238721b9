"""Frames of videos, which strangers may have made, by PyAV (`pip install 'tenfold[video]'`).

Its wheels hold an FFmpeg of their own and fit any torch (torchcodec's fit one version each, and
decord's FFmpeg is of 2021). FFmpeg is told the container, which the first bytes say: a playlist
that calls itself .mp4 would make it open other files and addresses.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.data.readers.files import open_data, refusing

MOST_PIXELS = 1 << 25  # of a frame


def decoder() -> Any:
    """The package PyAV; ModuleNotFoundError says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError("videos need PyAV: pip install 'tenfold[video]'") from error
    return av


def container(head: bytes) -> str | None:
    """FFmpeg's name of the container of a file that begins so; None of any that is not read."""
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"  # WebM, too
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else None


def read_frames(path: str | Path, choose: Callable[[int], Sequence[int]]) -> NDArray[np.uint8]:
    """Return (F, H, W, 3) RGB: the frames whose numbers, from 0 on, `choose` picks of so many, in
    that order. DataNotFoundError or DataCorruptError if the file can't be read."""
    av = decoder()
    # A damaged video surfaces as whatever its first wrong byte provokes in FFmpeg.
    with open_data(path) as file, refusing(f"{path}: no readable video", Exception):
        kind = container(file.read(12))
        if kind is None:
            raise ValueError("it begins as none of MP4, Matroska, WebM and AVI does")
        file.seek(0)
        with av.open(file, format=kind) as video:
            if not video.streams.video:
                raise ValueError("it has no pictures")
            stream = video.streams.video[0]
            if stream.width * stream.height > MOST_PIXELS:
                raise ValueError(f"its frames are larger than {MOST_PIXELS} pixels")
            count = sum(packet.size > 0 for packet in video.demux(stream))
            if not count:
                raise ValueError("it has no frame")
            numbers = choose(count)
            video.seek(0)
            decoded = enumerate(islice(video.decode(stream), max(numbers) + 1))
            frames = {n: frame.to_ndarray(format="rgb24") for n, frame in decoded if n in numbers}
            if absent := [number for number in numbers if number not in frames]:
                raise ValueError(f"frame {absent[0]} of {count} is not there")
            return np.stack([frames[number] for number in numbers])
