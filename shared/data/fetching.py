"""Make a data set present on this machine: idempotent, checked, placed whole or not at all.

Each function takes the folder that its reader in `shared.data.readers` will be given and returns
{name: {"files": {relative path: sha256 of the content}, "licence": str}} for results.json.
TENFOLD_SOURCES is a folder of files that you have already; TENFOLD_CACHE keeps downloads.
"""

import hashlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchvision import datasets

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.packages import cache_folder, given_folder, run_client, sha256_of, waiting_for
from shared.data.readers.files import one_line, read_data
from shared.files import replacing

log = logging.getLogger(__name__)
Provenance = dict[str, dict[str, Any]]
Way = Callable[[Path], Path]  # given an empty folder, returns the folder in which the data now lie

# Of the content, not of the .gz: the packagers compress differently.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
LICENCES = {
    "cifar-10": "none stated; free for research, cite Krizhevsky 2009",
    "cifar-100": "none stated; free for research, cite Krizhevsky 2009",
    "stl-10": "none stated; derived from ImageNet, cite Coates et al. 2011",
    "svhn": "non-commercial use only, cite Netzer et al. 2011",
}
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"


class _UnavailableError(Exception):
    """One way of getting the data does not work here; the next one is tried."""


def fashion_mnist(root: str | Path) -> Provenance:
    """Fashion-MNIST (Xiao et al. 2017) as four IDX files in `root`: those there, TENFOLD_SOURCES',
    the Debian package's (installed, or its archive unpacked) or torchvision's download."""
    root = Path(root)
    ways = {
        "TENFOLD_SOURCES": _local_idx_folder,
        f"Debian package {DEBIAN_PACKAGE}": _debian_archive,
        "torchvision's download": lambda w: (
            _download(datasets.FashionMNIST, w) / "FashionMNIST/raw"
        ),
    }
    with waiting_for(root):
        if not _has_fashion_mnist(root):
            _try_all("fashion-mnist", root, ways, _place_fashion_mnist)
        for name, sha256 in FASHION_MNIST_SHA256.items():
            _check_content(_idx_file(root, name), sha256)
    return {"fashion-mnist": {"files": dict(FASHION_MNIST_SHA256), "licence": "MIT"}}


def cifar10(root: str | Path) -> Provenance:
    """CIFAR-10 (Krizhevsky 2009) in `root/cifar-10-batches-py`."""
    return _from_torchvision("cifar-10", datasets.CIFAR10, root, {"cifar-10-batches-py": {}})


def cifar100(root: str | Path) -> Provenance:
    """CIFAR-100 (Krizhevsky 2009) in `root/cifar-100-python`."""
    return _from_torchvision("cifar-100", datasets.CIFAR100, root, {"cifar-100-python": {}})


def stl10(root: str | Path) -> Provenance:
    """STL-10 (Coates et al. 2011) in `root/stl10_binary`; 2.6 GB to fetch, 2.8 GB unpacked."""
    return _from_torchvision("stl-10", datasets.STL10, root, {"stl10_binary": {"split": "train"}})


def svhn(root: str | Path, extra: bool = False) -> Provenance:
    """SVHN (Netzer et al. 2011), cropped digits, in `root`: `train`, `test` and, if asked for,
    `extra` (1.3 GB)."""
    splits = ("train", "test", "extra")[: 2 + extra]
    parts = {f"{split}_32x32.mat": {"split": split} for split in splits}
    return _from_torchvision("svhn", datasets.SVHN, root, parts)


def imagenet(root: str | Path) -> Provenance:
    """ImageNet can't be fetched: check that the folders are there, or say what belongs where."""
    for folder in (Path(root) / "train", Path(root) / "val"):
        if not folder.is_dir():
            wanted = (
                f"unpack it as {folder}/<class>/*.JPEG, or set TENFOLD_DATA=DIR with DIR/imagenet"
            )
            told = f"{folder} not found. ImageNet is handed out after registration"
            raise DataNotFoundError(f"{told}: {wanted}")
    return {"imagenet": {"files": {}, "licence": "ImageNet terms of access (non-commercial)"}}


def webvision(root: str | Path) -> Provenance:
    """WebVision can't be fetched: check that the lists are there, or say what belongs where."""
    lists = Path(root) / "info" / "train_filelist_google.txt"
    if not lists.is_file():
        told = f"{lists} not found. WebVision (its page: data.vision.ee.ethz.ch/cvl/webvision) has"
        parts = "archives of the images of google and flickr, of val_images_256, and of the lists"
        raise DataNotFoundError(f"{told} {parts}: unpack them all in {root}")
    return {"webvision": {"files": {}, "licence": "WebVision terms (non-commercial research)"}}


def _local_idx_folder(_: Path) -> Path:
    given = given_folder()
    below = ("", "fashion-mnist", "fashion_mnist", "FashionMNIST/raw")
    folders = [given / name for name in below] if given else []
    for folder in (*folders, Path("/") / DEBIAN_FOLDER):
        if _has_fashion_mnist(folder):
            return folder
    raise _UnavailableError(f"no Fashion-MNIST files below {given}" if given else "not set")


def _debian_archive(workspace: Path) -> Path:
    """Fetch with apt, which needs no root, and unpack without installing."""

    def required(*command: str) -> None:
        if problem := run_client(command, workspace):
            raise _UnavailableError(f"{' '.join(command[:3])}: {problem}")

    cache = cache_folder() / "debian"
    archive = next(cache.glob(f"{DEBIAN_PACKAGE}_*.deb"), None)
    if archive is None:
        download = ["apt-get", "-q", "download", DEBIAN_PACKAGE]
        if run_client(download, workspace):  # a fresh machine has no package index yet
            required("apt-get", "-q", "update")
            required(*download)
        fetched = next(workspace.glob("*.deb"))
        cache.mkdir(parents=True, exist_ok=True)
        archive = Path(shutil.move(fetched, cache / fetched.name))
    required("dpkg-deb", "-x", str(archive), "unpacked")
    return workspace / "unpacked" / DEBIAN_FOLDER


def _place_fashion_mnist(found: Path, root: Path) -> None:
    if not _has_fashion_mnist(found):
        raise _UnavailableError(f"{found} lacks some of the files")
    for name, expected in FASHION_MNIST_SHA256.items():
        path = _idx_file(found, name)
        _check_content(path, expected)
        with replacing(root / name) as file:
            file.write(read_data(path))


def _from_torchvision(
    name: str, dataset: Any, root: str | Path, parts: Mapping[str, Mapping[str, str]]
) -> Provenance:
    """Fetch the `parts` (file or folder in `root` -> arguments of the torchvision data set)."""
    root = Path(root)

    def complete() -> bool:
        try:
            for arguments in parts.values():
                dataset(root, download=False, **arguments)
        except (RuntimeError, OSError):
            return False
        return True

    def fetch(workspace: Path) -> Path:
        if given := given_folder():  # what torchvision finds in place it does not fetch again
            for path in (given / n for n in (getattr(dataset, "filename", None), *parts) if n):
                if path.is_dir():
                    shutil.copytree(path, workspace / path.name)
                elif path.is_file():
                    shutil.copy(path, workspace)
        for arguments in parts.values():
            _download(dataset, workspace, **arguments)
        return workspace

    def place(found: Path, target: Path) -> None:
        for part in parts:
            if (target / part).is_dir():
                shutil.rmtree(target / part)
            os.replace(found / part, target / part)

    with waiting_for(root):
        if not complete():
            _try_all(name, root, {"TENFOLD_SOURCES, torchvision's download": fetch}, place)
    inside = (p for part in parts for p in (root / part, *(root / part).rglob("*")))
    files = {str(p.relative_to(root)): sha256_of(p) for p in sorted(inside) if p.is_file()}
    return {name: {"files": files, "licence": LICENCES[name]}}


def _try_all(
    name: str, root: Path, ways: Mapping[str, Way], place: Callable[[Path, Path], None]
) -> None:
    tried = []
    for title, way in ways.items():
        with tempfile.TemporaryDirectory(dir=root.resolve(), prefix=".fetching-") as workspace:
            try:
                place(way(Path(workspace)), root)
            except _UnavailableError as error:
                tried.append(f"{title}: {error}")
            else:
                log.info("%s: fetched by %s into %s", name, title, root)
                return
    told = f"{name} is not in {root} and could not be fetched ({'; '.join(tried)})"
    advice = f"Place its official files in {root} or in TENFOLD_SOURCES=DIR, and run again"
    raise DataNotFoundError(f"{told}. {advice}")


def _download(dataset: Callable[..., Any], folder: Path, **arguments: str) -> Path:
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        dataset(folder, download=True, **arguments)
        return folder
    except (OSError, RuntimeError) as error:
        raise _UnavailableError(f"failed ({one_line(error)})") from error
    finally:
        socket.setdefaulttimeout(patience)


def _has_fashion_mnist(folder: Path) -> bool:
    return all(_idx_file(folder, name).is_file() for name in FASHION_MNIST_SHA256)


def _idx_file(folder: Path, name: str) -> Path:
    """The file, or where only that is there its packed form."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def _check_content(path: Path, expected: str) -> None:
    if (found := hashlib.sha256(read_data(path)).hexdigest()) != expected:
        told = f"{path}: its content has the sha256 {found}, not {expected}"
        raise DataCorruptError(f"{told}: damaged or another data set, delete it and run again")
