"""Sets of labelled images behind one light interface.

`ArrayImages` holds small images in one uint8 array; `FolderImages` reads files when asked. Both
give `labels`, `class_names`, `len()` and `take(indices, pool) -> (images, indices)`. Labels are
(N,) int64 with -1 for unknown, or (N, K): 1 class present, -1 absent, 0 present but difficult.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

# PIL knows TIFF and WebP by name once their modules are imported.
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.files import open_regular

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file's name says: others start a program (EPS) or fetch a file."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
Pixels = NDArray[np.uint8]
Pictures = Pixels | Sequence[Pixels]
Indices = NDArray[np.int64]
T = TypeVar("T")


class ImageSet(Protocol):
    labels: Indices
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def take(self, indices: Indices, pool: Indices | None = None) -> tuple[Pictures, Indices]: ...


class ArrayImages:
    """Images in memory: (N, H, W[, C]) uint8. `every_class`: refuse a class without images."""

    def __init__(
        self,
        images: Pixels,
        labels: NDArray,
        class_names: Sequence[str],
        origin: str,
        every_class: bool = True,
    ) -> None:
        self.images, self.labels = images, np.asarray(labels, np.int64)
        self.class_names = tuple(class_names)
        if len(images) == 0:
            raise DataCorruptError(f"{origin}: no images")
        _check_labels(self, origin, every_class)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Indices, pool: Indices | None = None) -> tuple[Pixels, Indices]:
        """Return the images (n, H, W[, C]) and `indices` unchanged."""
        return self.images[indices], indices


class FileImages:
    """Images of any size, decoded when asked for, see `read_image`.

    Subclasses say how many there are, what names an image and what PIL opens. `cache` keeps every
    decoded image in memory, in each worker process those that it read: for small sets.

    For an unreadable image another one of `pool` stands in (so that a labelled image is only
    replaced by a labelled one), see `readable`. Each is named in a warning and counted, per
    process; beyond a share `max_corrupt` of the set, reading stops with a DataCorruptError.
    """

    upright = False
    most_pixels: int | None = None
    kind = "image"  # what an index names, for messages

    def __init__(
        self,
        max_corrupt: float,
        truncated: bool,
        mode: str,
        cache: bool = False,
        draft: int | None = None,
    ) -> None:
        self.max_corrupt, self.truncated = max_corrupt, truncated
        self.mode, self.draft = mode, draft
        self.corrupt: dict[str, str] = {}
        self._cache: dict[Any, Pixels] | None = {} if cache else None

    def __len__(self) -> int:
        raise NotImplementedError

    def path(self, index: int) -> str:
        """Where an image is, for messages."""
        raise NotImplementedError

    def content(self, index: int) -> str | BinaryIO:
        """What PIL opens."""
        return self.path(index)

    def decode(self, index: int, *turn: int) -> Pixels:
        """One image; OSError or DataCorruptError if it can't be read."""
        limits = (self.truncated, self.upright, self.most_pixels, self.draft)
        return read_image(self.content(index), self.mode, None, *limits)

    def key(self, index: int) -> Any:
        """What a decoded image is kept under: the same for two indices of one picture."""
        return index

    def take(self, indices: Indices, pool: Indices | None = None) -> tuple[list[Pixels], Indices]:
        """Return the images and the indices they really have, after replacing or leaving out."""
        return readable(indices, pool, self.read)

    def read(self, index: int, *turn: int) -> Pixels | None:
        """Return one image, or None if it is unreadable, which is warned of once. `turn` is the
        pass over the set, where each shows something else of what an index names."""
        if self._cache is not None and (key := self.key(index)) in self._cache:
            return self._cache[key]
        if self.corrupt and self.path(index) in self.corrupt:
            return None
        try:
            image = self.decode(index, *turn)
        except (OSError, DataCorruptError) as error:
            path, reason = self.path(index), str(error)
        else:
            if self._cache is not None:
                self._cache[key] = image
            return image
        self.corrupt[path] = reason
        count = f"{len(self.corrupt)} of {len(self)}"
        said = f"{path}: unreadable {self.kind} skipped ({reason}); {count} so far"
        warnings.warn(said, stacklevel=3)
        if len(self.corrupt) > self.max_corrupt * len(self):
            most = f"more than max_corrupt={self.max_corrupt:g}; the last one is {path}"
            advice = "Repair them or raise max_corrupt"
            raise DataCorruptError(f"{count} {self.kind}s are unreadable, {most}. {advice}")
        return None


class FolderImages(FileImages):
    """Images read from `paths`. `every_class`: refuse a class without images."""

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: NDArray,
        class_names: Sequence[str],
        origin: str,
        max_corrupt: float = 0.01,
        truncated: bool = False,
        every_class: bool = True,
        mode: str = "RGB",
        cache: bool = False,
    ) -> None:
        super().__init__(max_corrupt, truncated, mode, cache)
        # One array of bytes: a list of a million strings would be copied into every worker process.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.asarray(labels, np.int64)
        self.class_names = tuple(class_names)
        if len(self._paths) == 0:
            raise DataNotFoundError(f"{origin}: no images")
        _check_labels(self, origin, every_class)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        return os.fsdecode(self._paths[index])


def read_image(
    path: str | Path | BinaryIO,
    mode: str = "RGB",
    side: int | None = None,
    truncated: bool = False,
    upright: bool = False,
    most_pixels: int | None = None,
    draft: int | None = None,
) -> Pixels:
    """Return (H, W, 3) uint8 for `mode` "RGB", (H, W, 4) for "RGBA", (H, W) for "L".

    Resized to side x side if given. 16-bit pixels are scaled to 8 bits. A file that is not there
    raises OSError, an unreadable one OSError or DataCorruptError; a `truncated` one is read as far
    as it goes. `upright` turns it as its EXIF orientation says, which the official code of no paper
    here does when it reads data sets; their boxes count pixels as they are stored. An image of more
    than `most_pixels` is shrunk by the least whole factor that keeps within these. A JPEG is
    decoded at 1/2, 1/4 or 1/8 of its size where both sides keep `draft` pixels, which is faster;
    its pixels are then means, not those that resizing gives.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES  # PIL has no such option per file
    ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    try:
        with (
            nullcontext(path) if hasattr(path, "read") else open_regular(path) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            if draft is not None:
                image.draft(None, (draft, draft))
            picture = _eight_bit(image)
            if upright:
                with suppress(Exception):  # damaged EXIF data say nothing
                    picture = ImageOps.exif_transpose(picture)
            if most_pixels is not None and picture.width * picture.height > most_pixels:
                if picture.mode not in ("L", "RGB", "RGBA"):  # whose pixels have no mean
                    picture = picture.convert(mode)
                factor = (picture.width * picture.height / most_pixels) ** 0.5
                picture = picture.reduce(math.ceil(factor))
            if picture.mode != mode:
                picture = picture.convert(mode)
            picture.load()
    except OSError:
        raise
    # A damaged image surfaces as whatever its first wrong byte provokes in PIL's decoders.
    except Exception as error:
        raise DataCorruptError(str(error) or type(error).__name__) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    if side is not None and picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image with its grey values of 16 bits scaled to 8, which PIL's `convert` saturates."""
    # Of PNG and PPM files PIL reads 16-bit values into 32-bit pixels.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values.clip(0, 65535) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataCorruptError(f"32 bits a pixel (mode {image.mode}): save it with 8 or 16 bits")
    return image


def _check_labels(images: ImageSet, origin: str, every_class: bool) -> None:
    labels, names = images.labels, images.class_names
    if len(labels) != len(images):
        raise DataCorruptError(f"{origin}: {len(images)} images but {len(labels)} labels")
    if labels.ndim == 2:
        if labels.shape[1] != len(names) or not np.isin(labels, (-1, 0, 1)).all():
            raise DataCorruptError(f"{origin}: expected labels -1, 0 or 1 of {len(names)} classes")
        counts = (labels > 0).sum(axis=0)
    else:
        known = labels[labels >= 0]
        if known.size == 0:
            return
        if known.max() >= len(names):
            raise DataCorruptError(f"{origin}: label {known.max()}, but {len(names)} classes")
        counts = np.bincount(known, minlength=len(names))
    if every_class and (counts == 0).any():
        empty = [names[c] for c in np.flatnonzero(counts == 0)[:5]]
        raise DataCorruptError(f"{origin}: no image of class {', '.join(map(repr, empty))}")


def readable(
    indices: Indices,
    pool: Indices | None,
    read: Callable[..., T | None],
    passes: Indices | None = None,
) -> tuple[list[T], Indices]:
    """What `read` makes of each index (and its pass over the set, if `passes` says which), and the
    indices read: where it makes None, the next of the sorted `pool`, cyclically, stands in, or
    without a pool the index is left out."""
    found, used = [], []
    for place, index in enumerate(indices):
        turn = () if passes is None else (int(passes[place]),)
        start = 0 if pool is None else int(np.searchsorted(pool, index, side="right"))
        others = () if pool is None else chain(pool[start:], pool[:start])
        for candidate in chain([index], others):
            if (value := read(int(candidate), *turn)) is not None:
                found.append(value)
                used.append(candidate)
                break
        else:
            if pool is not None:
                raise DataCorruptError(f"none of {len(pool)} images can be read")
    return found, np.array(used, np.int64)
