"""Make a data set present on this machine: idempotent, checked, placed whole or not at all.

Each function takes the folder that the reader of `shared.data.readers.small_images` will be given and returns
{name: {"files": {relative path: sha256 of the content}, "licence": str}} for results.json.
Environment: TENFOLD_SOURCES is a folder of files that you have already; TENFOLD_CACHE (data/cache)
keeps downloaded archives.
"""

import hashlib
import logging
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from shared.data.readers.files import open_data, read_data
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.files import replacing

log = logging.getLogger(__name__)
Provenance = dict[str, dict[str, Any]]

# Of the content, not of the .gz: the packagers compress differently.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"


class _UnavailableError(Exception):
    """One way of getting the data does not work here; the next one is tried."""


def fashion_mnist(root: str | Path) -> Provenance:
    """Fashion-MNIST (Xiao et al. 2017) as four IDX files in `root`.

    Taken from `root`, TENFOLD_SOURCES, the Debian package of that name (installed, or its archive
    unpacked without installing) or torchvision's download, whichever works first.
    """
    root = Path(root)
    with _locked(root):
        if not all(_idx_file(root, name) for name in FASHION_MNIST_SHA256):
            _try_all("fashion-mnist", root, _fashion_mnist_ways(), _place_fashion_mnist)
        files = {}
        for name, expected in FASHION_MNIST_SHA256.items():
            path = _idx_file(root, name)
            assert path is not None
            files[name] = _check_content(path, expected)
    return {"fashion-mnist": {"files": files, "licence": "MIT"}}


def cifar10(root: str | Path) -> Provenance:
    """CIFAR-10 (Krizhevsky 2009) in `root/cifar-10-batches-py`."""
    return _from_torchvision("cifar-10", "CIFAR10", root, ["cifar-10-batches-py"], [{}])


def cifar100(root: str | Path) -> Provenance:
    """CIFAR-100 (Krizhevsky 2009) in `root/cifar-100-python`."""
    return _from_torchvision("cifar-100", "CIFAR100", root, ["cifar-100-python"], [{}])


def stl10(root: str | Path) -> Provenance:
    """STL-10 (Coates et al. 2011) in `root/stl10_binary`; 2.6 GB to fetch, 2.8 GB unpacked."""
    return _from_torchvision("stl-10", "STL10", root, ["stl10_binary"], [{"split": "train"}])


def svhn(root: str | Path) -> Provenance:
    """SVHN (Netzer et al. 2011), cropped digits, `train` and `test`, in `root`."""
    variants = [{"split": "train"}, {"split": "test"}]
    names = ["train_32x32.mat", "test_32x32.mat"]
    return _from_torchvision("svhn", "SVHN", root, names, variants)


def imagenet(root: str | Path) -> Provenance:
    """ImageNet can't be fetched: check that the folders are there, or say what belongs where."""
    for part in ("train", "val"):
        folder = Path(root) / part
        if not folder.is_dir():
            raise DataNotFoundError(
                f"{folder} not found. ImageNet (ILSVRC 2012) is handed out by its owners after "
                f"registration: unpack it as {folder}/<class>/*.JPEG, or set TENFOLD_DATA=DIR so "
                "that DIR/imagenet is the folder that you have"
            )
    return {"imagenet": {"files": {}, "licence": "ImageNet terms of access (non-commercial)"}}


LICENCES = {
    "cifar-10": "none stated; free for research, cite Krizhevsky 2009",
    "cifar-100": "none stated; free for research, cite Krizhevsky 2009",
    "stl-10": "none stated; derived from ImageNet, cite Coates et al. 2011",
    "svhn": "non-commercial use only, cite Netzer et al. 2011",
}


def _fashion_mnist_ways() -> dict[str, Callable[[Path], Path]]:
    return {
        "TENFOLD_SOURCES": _local_idx_folder,
        f"Debian package {DEBIAN_PACKAGE}": _debian_archive,
        "torchvision's download": _torchvision_fashion_mnist,
    }


def _local_idx_folder(_: Path) -> Path:
    """A folder that holds the four files: below TENFOLD_SOURCES or as the Debian package does."""
    given = os.environ.get("TENFOLD_SOURCES")
    candidates = [Path("/") / DEBIAN_FOLDER]
    if given:
        below = ("", "fashion-mnist", "fashion_mnist", "FashionMNIST/raw")
        candidates = [Path(given) / name for name in below] + candidates
    for folder in candidates:
        if all(_idx_file(folder, name) for name in FASHION_MNIST_SHA256):
            return folder
    raise _UnavailableError("not set" if not given else f"no Fashion-MNIST files below {given}")


def _debian_archive(workspace: Path) -> Path:
    """Fetch the archive with apt (no root needed, nothing is installed) and unpack it."""
    cache = Path(os.environ.get("TENFOLD_CACHE", "data/cache")).resolve() / "debian"
    archive = next(cache.glob(f"{DEBIAN_PACKAGE}_*.deb"), None)
    if archive is None:
        fetch = ["apt-get", "-q", "download", DEBIAN_PACKAGE]
        try:
            _command(fetch, workspace)
        except _UnavailableError:  # a fresh machine has no package index yet
            _command(["apt-get", "-q", "update"], workspace)
            _command(fetch, workspace)
        fetched = next(workspace.glob("*.deb"))
        cache.mkdir(parents=True, exist_ok=True)
        archive = Path(shutil.move(fetched, cache / fetched.name))
    _command(["dpkg-deb", "-x", str(archive), "unpacked"], workspace)
    return workspace / "unpacked" / DEBIAN_FOLDER


def _torchvision_fashion_mnist(workspace: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    _download(FashionMNIST, workspace, {})
    return workspace / "FashionMNIST" / "raw"


def _place_fashion_mnist(found: Path, root: Path) -> None:
    """Put the checked, unpacked files into `root`."""
    for name, expected in FASHION_MNIST_SHA256.items():
        path = _idx_file(found, name)
        if path is None:
            raise _UnavailableError(f"{found / name} is missing")
        _check_content(path, expected)
        with replacing(root / name) as file:
            file.write(read_data(path))


def _from_torchvision(
    name: str,
    class_name: str,
    root: str | Path,
    entries: Sequence[str],
    variants: Sequence[dict[str, str]],
) -> Provenance:
    """Fetch through a torchvision data set, which knows the official address and checksums."""
    from torchvision import datasets

    dataset = getattr(datasets, class_name)
    root = Path(root)

    def complete(folder: Path) -> bool:
        try:
            for variant in variants:
                dataset(folder, download=False, **variant)
        except (RuntimeError, OSError):
            return False
        return True

    def fetch(workspace: Path) -> Path:
        given = os.environ.get("TENFOLD_SOURCES")
        if given:  # An archive that torchvision finds in place is not downloaded again.
            names = [getattr(dataset, "filename", None), *entries]
            for path in (Path(given) / n for n in names if n):
                if path.is_dir():
                    shutil.copytree(path, workspace / path.name)
                elif path.is_file():
                    shutil.copy(path, workspace)
        for variant in variants:
            _download(dataset, workspace, variant)
        return workspace

    def place(found: Path, target: Path) -> None:
        for entry in entries:
            if (target / entry).is_dir():
                shutil.rmtree(target / entry)
            os.replace(found / entry, target / entry)

    with _locked(root):
        if not complete(root):
            _try_all(name, root, {"TENFOLD_SOURCES, torchvision's download": fetch}, place)
    paths = [
        p for e in entries for p in ((root / e).rglob("*") if (root / e).is_dir() else [root / e])
    ]
    files = {str(p.relative_to(root)): _sha256(p) for p in sorted(paths) if p.is_file()}
    return {name: {"files": files, "licence": LICENCES[name]}}


def _try_all(
    name: str,
    root: Path,
    ways: dict[str, Callable[[Path], Path]],
    place: Callable[[Path, Path], None],
) -> None:
    """Use the first way that works, within a temporary folder beside the target.

    Raises:
        DataNotFoundError: none works; lists what was tried and what to place where.
    """
    tried = []
    for title, way in ways.items():
        with tempfile.TemporaryDirectory(dir=root.resolve(), prefix=".fetching-") as workspace:
            try:
                place(way(Path(workspace)), root)
            except _UnavailableError as error:
                tried.append(f"  - {title}: {error}")
            else:
                log.info("%s: fetched by %s into %s", name, title, root)
                return
    raise DataNotFoundError(
        f"{name} is not in {root} and could not be fetched. Tried:\n"
        + "\n".join(tried)
        + f"\nPlace its official files in {root}, or in a folder named by TENFOLD_SOURCES, and run "
        "the same command again."
    )


def _download(dataset: Callable[..., Any], folder: Path, arguments: dict[str, str]) -> None:
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        dataset(folder, download=True, **arguments)
    except (OSError, RuntimeError) as error:
        raise _UnavailableError(f"failed ({' '.join(str(error).split())})") from error
    finally:
        socket.setdefaulttimeout(patience)


def _command(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except FileNotFoundError as error:
        raise _UnavailableError(f"no {command[0]} on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise _UnavailableError(f"{command[0]} took too long") from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "no message").strip().splitlines()
        raise _UnavailableError(f"{' '.join(command[:3])}: {lines[-1]}") from error


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Arms of a claim start together; one fetches, the others wait."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        yield


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _check_content(path: Path, expected: str) -> str:
    found = hashlib.sha256(read_data(path)).hexdigest()
    if found != expected:
        raise DataCorruptError(
            f"{path}: its content has the sha256 {found}, not {expected}. It is damaged or another "
            "data set: delete it and run the same command again"
        )
    return found


def _sha256(path: Path) -> str:
    with open_data(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
