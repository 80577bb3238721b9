"""Builds are whole or absent, made once, and checked."""

import hashlib
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.miniatures.building import build_once, save_arrays, write_list
from shared.data.errors import DataCorruptError


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


def build_slowly(root: Path, log: Path) -> None:
    def slow(folder: Path) -> None:
        with log.open("a") as file:
            file.write("x")
        time.sleep(0.2)
        build(folder)

    build_once(root, "set", {}, slow)


def test_two_processes_build_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    arguments = (tmp_path / "root", tmp_path / "log")
    processes = [fork.Process(target=build_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "x"


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


def test_two_builds_share_a_folder_and_another_recipe_is_refused(tmp_path: Path) -> None:
    build_once(tmp_path, "set", {"seed": 1, "size": 2}, build)
    build_once(tmp_path, "second", {"seed": 2}, lambda f: write_list(f / "b.txt", [], np.array([])))
    assert build_once(tmp_path, "set", {"seed": 1, "size": 2}, build)
    assert (tmp_path / "b.txt").is_file()
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
