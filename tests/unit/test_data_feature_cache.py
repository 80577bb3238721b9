"""Cached arrays: what the key depends on, damage, read-only places, concurrent writers."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shared.data.loading import feature_cache
from shared.data.loading.feature_cache import Arrays, cache_key, cached


def arrays() -> Arrays:
    return {"ids": np.arange(7, dtype=np.int32), "text": np.frombuffer(b"caf\xc3\xa9", np.uint8)}


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype
        for name in one
    )


def unexpected() -> Arrays:
    raise AssertionError("made although it is there")


def test_the_key_depends_on_contents_order_and_settings(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("one")
    second.write_text("two")
    settings = ("tokens", {"query": 3, "code": 4})
    keys = {
        cache_key([first, second], *settings),
        cache_key([second, first], *settings),
        cache_key([first], *settings),
        cache_key([first, second], "tokens", {"query": 4, "code": 3}),
        cache_key([first, second], "tokens", {"query": 3, "code": 4}, None),
    }
    assert len(keys) == 5
    known = cache_key([first, second], "tokens", {"code": 4, "query": 3})
    assert known in keys, "the order of a dict's keys means nothing"
    moved = tmp_path / "elsewhere"
    moved.write_text("one")
    assert cache_key([moved, second], *settings) == known
    first.write_text("One")
    assert cache_key([first, second], *settings) not in keys


def test_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert same(cached(folder, "key", arrays)[0], arrays())
    assert same(cached(folder, "key", unexpected)[0], arrays())
    assert [path.name for path in folder.glob("*.*")] == [".lock", "key.safetensors"]
    with pytest.raises(AssertionError):
        cached(folder, "other", unexpected)


def test_nothing_is_kept_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        cached(tmp_path, "key", unexpected)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    """tests/hostile has other damages."""
    cached(tmp_path, "key", arrays)
    path = tmp_path / "key.safetensors"
    content = bytearray(path.read_bytes())
    content[content.index(arrays()["ids"].tobytes()) + 5] ^= 8
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"key\.safetensors: damaged.* it is made anew"):
        assert same(cached(tmp_path, "key", arrays)[0], arrays())
    assert same(cached(tmp_path, "key", unexpected)[0], arrays())


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "save", full)
    with pytest.warns(UserWarning, match=r"key\.safetensors: not kept.*No space left"):
        assert same(cached(tmp_path, "key", arrays)[0], arrays())
    assert [path.name for path in tmp_path.iterdir()] == [".lock"], "no half-written file stays"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.warns(UserWarning, match="not kept"):
        assert same(cached(blocked / "below", "key", arrays)[0], arrays())


def test_several_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: cached(tmp_path, "key", arrays), range(16)))
    assert all(same(one, arrays()) for one, _ in found)
    assert sorted(os.listdir(tmp_path)) == [".lock", "key.safetensors"]
