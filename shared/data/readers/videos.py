"""Frames of videos, which strangers may have made.

By PyAV (`pip install 'tenfold[video]'`), whose wheels hold an FFmpeg of their own and fit any
torch, or by torchcodec, which needs FFmpeg's libraries and the torch that it was built for.
(decord's FFmpeg is of 2021, and it fails at sizes such as 48 x 32.) Both give the same frames: they
are numbered in the order in which they are shown, whatever time lies between them, without those
that an edit list hides, and turned as the file says.

FFmpeg is told the container, which the first bytes say: a playlist that calls itself .mp4 would
make it open other files and addresses.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shared.data.readers.files import open_data, refusing

MOST_PIXELS = 1 << 25  # of a frame
MOST_SHOWN = 1 << 27  # pixels of all frames that are shown
MOST_FRAMES = 1 << 22  # of a video, two days of 25 a second

Frames = NDArray[np.uint8]
Choose = Callable[[int], Sequence[int]]
Decode = Callable[[BinaryIO, str, Choose], Frames]


def decoder(name: str = "auto") -> Decode:
    """The function that decodes by the package of that name, or by the first one that is there;
    ModuleNotFoundError says how to get it."""
    if name != "auto" and name not in DECODERS:
        raise ValueError(f"decoder={name!r}: known are auto, {', '.join(DECODERS)}")
    reasons = []
    for package in DECODERS if name == "auto" else [name]:
        module, decode = DECODERS[package]
        try:
            import_module(module)
            return decode
        except (ImportError, OSError, RuntimeError) as error:  # also of libraries that don't fit
            reasons.append(f"{package}: {str(error).strip().splitlines()[0]}")
    told = "PyAV: pip install 'tenfold[video]'" if name == "auto" else f"{name} as asked for"
    raise ModuleNotFoundError(f"videos need {told} ({'; '.join(reasons)})")


def container(head: bytes) -> str | None:
    """FFmpeg's name of the container of a file that begins so; None of any that is not read."""
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"  # WebM, too
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else None


def read_frames(video: str | Path | BinaryIO, choose: Choose, name: str = "auto") -> Frames:
    """Return (F, H, W, 3) RGB: the frames whose numbers, from 0 on, `choose` picks of so many, in
    that order. DataNotFoundError or DataCorruptError if the video can't be read; `name`: see
    `decoder`."""
    decode, where = decoder(name), f"{video}: " if isinstance(video, str | Path) else ""
    opened = open_data(video) if isinstance(video, str | Path) else nullcontext(video)
    # A damaged video surfaces as whatever its first wrong byte provokes in FFmpeg.
    with opened as file, refusing(f"{where}no readable video", Exception):
        kind = container(file.read(12))
        if kind is None:
            raise ValueError("it begins as none of MP4, Matroska, WebM and AVI does")
        file.seek(0)
        return decode(file, kind, choose)


def _by_pyav(file: BinaryIO, kind: str, choose: Choose) -> Frames:
    av: Any = import_module("av")
    with av.open(file, format=kind) as video:
        if not video.streams.video:
            raise ValueError("it has no pictures")
        stream = video.streams.video[0]
        pixels = _pixels(stream.width, stream.height)
        stream.codec_context.thread_count = 1  # loaders have processes of their own
        shown = (p for p in video.demux(stream) if p.size and not p.is_discard)
        first = islice(shown, MOST_FRAMES + 1)
        packets = [(packet.pts, packet.is_keyframe) for packet in first]
        numbers = _chosen(choose, len(packets), pixels)
        timed = all(time is not None for time, _ in packets)  # AVI may tell no times
        times = sorted(time for time, _ in packets) if timed else range(len(packets))
        starts = sorted(time for time, is_start in packets if timed and is_start)
        frames: dict[int, Frames] = {}
        # Frames are decoded from the last one before them that stands by itself.
        wanted = sorted({times[number] for number in numbers})
        for _, group in groupby(wanted, lambda time: bisect_right(starts, time)):
            together = list(group)
            video.seek(together[0], stream=stream)
            for number, frame in enumerate(video.decode(stream)):
                time = frame.pts if timed else number
                if time in together:
                    _pixels(frame.width, frame.height)  # it may change
                    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    frames[time] = turned
                if time >= together[-1]:
                    break
        if absent := [number for number in numbers if times[number] not in frames]:
            raise ValueError(f"frame {absent[0]} of {len(packets)} is not there")
        return np.stack([frames[times[number]] for number in numbers])


def _by_torchcodec(file: BinaryIO, kind: str, choose: Choose) -> Frames:
    """As `_by_pyav`; it can't be told the container, but what begins as one of those is no list."""
    library: Any = import_module("torchcodec.decoders")
    video = library.VideoDecoder(file, dimension_order="NHWC", num_ffmpeg_threads=1)
    pixels = _pixels(video.metadata.width, video.metadata.height)
    return video.get_frames_at(_chosen(choose, len(video), pixels)).data.numpy()


DECODERS: dict[str, tuple[str, Decode]] = {
    "pyav": ("av", _by_pyav),
    "torchcodec": ("torchcodec.decoders", _by_torchcodec),
}


def _pixels(width: Any, height: Any) -> int:
    """The size of a frame; ValueError if it is too large."""
    if width * height > MOST_PIXELS:
        raise ValueError(f"its frames are larger than {MOST_PIXELS} pixels")
    return width * height


def _chosen(choose: Choose, count: int, pixels: int) -> list[int]:
    if not 0 < count <= MOST_FRAMES:
        raise ValueError(f"it has more than {MOST_FRAMES} frames" if count else "it has no frame")
    numbers = list(choose(count))
    if len(numbers) * pixels > MOST_SHOWN:
        raise ValueError(f"{len(numbers)} of its frames have more than {MOST_SHOWN} pixels")
    if outside := [number for number in numbers if not 0 <= number < count]:
        raise ValueError(f"frame {outside[0]} of {count} is not there")
    return numbers
