"""Images from bytes, in worker processes; what cannot be read is a fault of its entry."""

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from shared.data.captioned.records import Block, Record, outside
from shared.data.images import FORMATS, Pixels, read_image
from shared.data.readers.files import one_line
from shared.files import open_regular

MOST_BYTES = 1 << 28  # of an image file


class UnusableError(ValueError):
    """An image cannot be used; the message is a fault."""


class Picture(NamedTuple):
    """An image as the networks see it, (S, S, 3) by size S, the SHA-256 of its file, its height and
    width, and the image itself, (H, W, 3), where the decoder keeps it."""

    sha256: str
    views: dict[int, Pixels]
    size: tuple[int, int]
    pixels: Pixels | None = None


class Decoded(NamedTuple):
    """A block with its images; in place of one that cannot be used stands its fault."""

    block: Block
    pictures: list[Picture | str]


@dataclass(frozen=True)
class Decoder:
    """A data set of torch's loader whose indices are blocks. No image's file lies outside of
    `root`, none of more than `most_pixels` is decoded."""

    root: str | None
    sizes: tuple[int, ...]
    most_pixels: int
    on_white: bool = True  # where an image is transparent; else its alpha is dropped
    whole: bool = False  # whether pictures keep all their pixels

    def __getitem__(self, block: Block) -> Decoded:
        return Decoded(block, [self._picture(record) for record in block.records])

    def _picture(self, record: Record) -> Picture | str:
        if record.fault:
            return record.fault
        try:
            content = self.read(record)
            pixels = self.pixels(content)
            image = Image.fromarray(pixels)
        except UnusableError as error:
            return str(error)
        # As the official transform for evaluation does: the aspect ratio is not kept.
        resized = {s: image.resize((s, s), Image.Resampling.BICUBIC) for s in self.sizes}
        views = {size: np.asarray(view) for size, view in resized.items()}
        digest, kept = hashlib.sha256(content).hexdigest(), pixels if self.whole else None
        return Picture(digest, views, (image.height, image.width), kept)

    def read(self, record: Record) -> bytes:
        """The file's bytes."""
        assert record.image is not None
        path, offset, size = record.image
        try:
            if outside(path, self.root):
                raise UnusableError("outside: a link leads out of the image root")
            with open_regular(path) as file:
                length = os.fstat(file.fileno()).st_size if size is None else size
                if length > MOST_BYTES:
                    raise UnusableError(f"too large: {length} bytes")
                return os.pread(file.fileno(), length, offset)
        except FileNotFoundError:
            raise UnusableError("no file") from None
        except OSError as error:
            raise UnusableError(f"unreadable: {error.strerror}") from None

    def pixels(self, content: bytes) -> Pixels:
        """(H, W, 3) of a file's bytes."""
        try:
            with warnings.catch_warnings(action="ignore"):  # of sizes, which are checked here
                with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                    width, height = image.size
                if width * height > self.most_pixels:
                    raise UnusableError(f"too large: {width} x {height} pixels")
                pixels = read_image(io.BytesIO(content), "RGBA" if self.on_white else "RGB")
                if self.on_white:
                    ground = Image.new("RGBA", (width, height), "white")
                    ground.alpha_composite(Image.fromarray(pixels))
                    pixels = np.asarray(ground.convert("RGB"))
                return pixels
        except (UnusableError, MemoryError):
            raise
        except Exception as error:  # whatever the first wrong byte provokes
            # Its message may name the address of an object, which is another one in each process.
            said = "" if " at 0x" in str(error) else one_line(error)
            kind = "too large" if isinstance(error, Image.DecompressionBombError) else "unreadable"
            raise UnusableError(f"{kind}: {said or type(error).__name__}") from None
