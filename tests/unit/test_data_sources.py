"""Sources without a network: every way is replaced or fails, and says so."""

import gzip
import hashlib
import shutil
from pathlib import Path

import pytest

from benchmarks.miniatures.synthetic import fashion_mnist as write_synthetic
from shared.data import fetching
from shared.data.errors import DataCorruptError, DataNotFoundError


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in for the real files, whose checksums are expected."""
    folder = tmp_path / "local"
    made = write_synthetic(folder)["synthetic-fashion-mnist"]["files"]
    monkeypatch.setattr(fetching, "FASHION_MNIST_SHA256", made)
    monkeypatch.setattr(fetching, "DEBIAN_FOLDER", "nonexistent/fashion-mnist")
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TENFOLD_SOURCES", raising=False)

    def no_network(*_: object) -> None:
        raise fetching._UnavailableError("no network in tests")

    monkeypatch.setattr(fetching, "run_client", lambda command, folder: "no network in tests")
    monkeypatch.setattr(fetching, "_download", no_network)
    return folder


def test_local_folder_then_idempotent(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENFOLD_SOURCES", str(local.parent))
    local.rename(local.parent / "fashion-mnist")
    root = tmp_path / "root"
    found = fetching.fashion_mnist(root)
    assert found == {"fashion-mnist": {"files": fetching.FASHION_MNIST_SHA256, "licence": "MIT"}}
    times = {p: p.stat().st_mtime_ns for p in root.iterdir() if p.name != ".lock"}
    assert sorted(p.name for p in times) == sorted(fetching.FASHION_MNIST_SHA256)
    monkeypatch.delenv("TENFOLD_SOURCES")
    assert fetching.fashion_mnist(root) == found
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())


def test_gz_files_in_place_are_enough(local: Path) -> None:
    for name in fetching.FASHION_MNIST_SHA256:
        (local / f"{name}.gz").write_bytes(gzip.compress((local / name).read_bytes()))
        (local / name).unlink()
    assert fetching.fashion_mnist(local)["fashion-mnist"]["files"] == fetching.FASHION_MNIST_SHA256
    (local / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b123")
    with pytest.raises(DataCorruptError, match=r"train-images-idx3-ubyte.gz: can't be read"):
        fetching.fashion_mnist(local)


@pytest.mark.parametrize("where", ["root", "local"])
def test_wrong_checksum_is_an_error(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    damaged = local / "t10k-labels-idx1-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01\x02")
    root = local if where == "root" else tmp_path / "root"
    monkeypatch.setenv("TENFOLD_SOURCES", str(local))
    with pytest.raises(DataCorruptError, match=r"t10k-labels-idx1-ubyte: .* sha256"):
        fetching.fashion_mnist(root)
    assert not (tmp_path / "root" / "t10k-labels-idx1-ubyte").exists()


def test_nothing_works_lists_all_that_was_tried(local: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError) as error:
        fetching.fashion_mnist(tmp_path / "root")
    for part in ("TENFOLD_SOURCES: not set", "Debian package", "torchvision's download", "Place"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".lock"]


@pytest.mark.parametrize("index", ["present", "absent"])
def test_debian_archive_is_unpacked_and_cached(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    commands = []

    def apt(command: list[str], folder: Path) -> str | None:
        commands.append(command[0] if command[0] == "dpkg-deb" else command[2])
        if command[0] == "dpkg-deb":
            shutil.copytree(local, folder / command[3] / fetching.DEBIAN_FOLDER)
        elif command[2] == "download":
            if index == "absent" and "update" not in commands:
                return "unable to locate package"
            (folder / "dataset-fashion-mnist_1_all.deb").write_bytes(b"")
        return None

    monkeypatch.setattr(fetching, "run_client", apt)
    fetching.fashion_mnist(tmp_path / "root")
    expected = ["download", "dpkg-deb"]
    assert commands == (["download", "update", *expected] if index == "absent" else expected)
    commands.clear()
    fetching.fashion_mnist(tmp_path / "other")
    assert commands == ["dpkg-deb"]


class FakeSet:
    """Stands in for a torchvision data set of one file."""

    filename = "set.tar.gz"

    def __init__(self, root: Path, download: bool, split: str = "train") -> None:
        path = Path(root) / f"{split}_32x32.mat"
        if download and (Path(root) / "offline").exists():
            raise OSError("no network")
        if download:
            path.write_bytes(split.encode())
        if not path.exists():
            raise RuntimeError("not found or corrupted")


def test_torchvision_sets_are_placed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENFOLD_SOURCES", raising=False)
    monkeypatch.setattr("torchvision.datasets.SVHN", FakeSet)
    root = tmp_path / "svhn"
    found = fetching.svhn(root)["svhn"]["files"]
    assert found == {
        f"{s}_32x32.mat": hashlib.sha256(s.encode()).hexdigest() for s in ("train", "test")
    }
    assert fetching.svhn(root)["svhn"]["files"] == found
    given = tmp_path / "given"
    given.mkdir()
    (given / "set.tar.gz").touch()
    monkeypatch.setenv("TENFOLD_SOURCES", str(given))
    monkeypatch.setattr(FakeSet, "filename", "offline")
    (given / "offline").touch()
    with pytest.raises(DataNotFoundError, match="no network"):
        fetching.svhn(tmp_path / "other")


def test_imagenet_explains(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"train not found.*registration"):
        fetching.imagenet(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    assert fetching.imagenet(tmp_path)["imagenet"]["files"] == {}


def test_synthetic_is_deterministic_and_idempotent(tmp_path: Path) -> None:
    first = write_synthetic(tmp_path, train=20, test=10, image_size=14, seed=3)
    times = [p.stat().st_mtime_ns for p in sorted(tmp_path.iterdir())]
    assert write_synthetic(tmp_path, train=20, test=10, image_size=14, seed=3) == first
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.iterdir())] == times
    assert write_synthetic(tmp_path, train=20, test=10, image_size=14, seed=4) != first
