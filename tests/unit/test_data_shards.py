"""Shards: members, index files, order, reading, the module, every kind of damage."""

import io
import json
import os
import pickle
import tarfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from views_toy import plain_views

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.image_text import shards as module
from shared.data.image_text.pairs import image_id
from shared.data.image_text.shards import (
    ShardChangedError,
    ShardPairData,
    ShardSamples,
    WindowShuffle,
    read_table,
)
from shared.data.loading.feature_cache import checksum, mapped

Members = Sequence[tuple[str, bytes]]


def picture(shade: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    colour = (shade, shade, shade) if mode == "RGB" else (shade, shade, shade, 0)
    Image.new(mode, (4, 5), colour).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def sample(key: str, shade: int, **about: Any) -> list[tuple[str, bytes]]:
    """A picture of one shade, with a .txt or, if anything is said about it, a .json."""
    if about:
        return [(f"{key}.png", picture(shade)), (f"{key}.json", json.dumps(about).encode())]
    return [(f"{key}.png", picture(shade)), (f"{key}.txt", f"shade {shade}".encode())]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three shards of 3, 1 and 4 samples, their shades rising from 0."""
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    numbers = iter(range(8))
    for shard, count in enumerate((3, 1, 4)):
        members = [m for i in range(count) for m in sample(f"{shard}{i:03}", next(numbers))]
        write(tmp_path / "data" / f"{shard:05}.tar", members)
    return tmp_path / "data"


def samples(folder: Path, **arguments: Any) -> ShardSamples:
    return ShardSamples(folder / "*.tar", **arguments)


def shades(found: ShardSamples, indices: Sequence[int], pool: np.ndarray | None = None) -> list:
    pictures, used = found.take(np.array(indices), pool)
    assert len(pictures) == len(used)
    return [int(p[0, 0, 0]) for p in pictures]


def test_samples_are_numbered_through_all_shards(folder: Path) -> None:
    found = samples(folder)
    assert len(found) == 8
    assert shades(found, [7, 0, 3, 2]) == [7, 0, 3, 2]
    pictures, used = found.take(np.array([5, 5]))
    assert pictures[0].shape == (5, 4, 3)
    assert used.dtype == np.int64
    assert used.tolist() == [5, 5]
    assert [e["caption"] for e in map(found.entry, [6, 1])] == ["shade 6", "shade 1"]
    assert len({image_id(entry) for entry in [found.entry(n) for n in range(8)]}) == 8
    assert shades(ShardSamples([folder / "00002.tar", folder / "00000.tar"]), [0, 4]) == [4, 0]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_layouts_of_webdataset_and_img2dataset(tmp_path: Path, format: int) -> None:
    """Keys end at the first dot; suffixes in capitals; other members and folders are ignored."""
    members = [
        ("a/0.jpg", picture(10, "JPEG")),
        ("a/0.txt", b"first\n"),
        ("a/0.json", json.dumps({"caption": "unused", "key": "0"}).encode()),
        ("0.txt", b"second"),
        ("0.JPEG", picture(20, "JPEG")),
        ("1.seg.png", b"no picture of this set"),
        ("1.webp", picture(30, "WEBP")),
        ("1.cls", b"7"),
        ("1.json", json.dumps({"caption": ["third", "Third!"], "image_id": 5}).encode()),
        ("lonely.txt", b"a caption without a picture"),
    ]
    if format != tarfile.USTAR_FORMAT:  # long names are members of their own before the file
        members += [(f"{'x' * 150}.png", picture(40)), (f"{'x' * 150}.txt", b"fourth")]
    path = write(tmp_path / "s.tar", members, format)
    with tarfile.open(path, "a") as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ShardSamples(path)
    captions = [entry["caption"] for entry in [found.entry(n) for n in range(len(found))]]
    assert captions == ["first\n", "second", ["third", "Third!"], "fourth"][: len(found)]
    assert len(found) == (3 if format == tarfile.USTAR_FORMAT else 4)
    assert np.abs(np.array(shades(found, range(3))) - [10, 20, 30]).max() <= 2


def test_image_ids_are_shared_by_captions_of_one_image(tmp_path: Path) -> None:
    first = [
        *sample("0", 0, caption="a", image_id=7),
        *sample("1", 0, caption="b", image_id="7"),
        *sample("2", 0, caption="c", image_id=7),
        *sample("3", 1),
        *sample("4", 0, caption="d", image_id=None),
    ]
    second = [*sample("3", 2), *sample("5", 0, caption="e", image_id="7")]
    both = ShardSamples([write(tmp_path / "a.tar", first), write(tmp_path / "b.tar", second)])
    ids = [image_id(entry) for entry in [both.entry(n) for n in range(7)]]
    assert ids[0] == ids[2] != ids[1] == ids[6]
    assert len(set(ids)) == 5
    # The caption may come from one file and the identity from the other.
    members = [
        (f"{k}.{s}", c)
        for k in "01"
        for s, c in (("png", picture(0)), ("txt", b"x"), ("json", b'{"image_id": 3}'))
    ]
    found = ShardSamples(write(tmp_path / "c.tar", members))
    one, two = map(found.entry, range(2))
    assert image_id(one) == image_id(two)


def test_pictures_without_a_word_are_left_out_and_counted(tmp_path: Path) -> None:
    members = [
        ("0.png", picture(0)),
        *sample("1", 1),
        ("2.png", picture(2)),
        ("2.txt", b"..."),
        ("3.png", picture(3)),
        ("3.txt", b"\xff\xfe"),
        *sample("4", 4, caption=None),
        *sample("5", 5, caption=["a", 5]),
        *sample("6", 6, caption=[]),
        *sample("7", 7, title="a"),
        ("8.png", picture(8)),
        ("8.json", b"[" * 100_000),
        ("9.png", picture(9)),
        ("9.json", b'{"caption": "\\ud800"}'),
        ("a.png", picture(10)),
        ("a.txt", b"x" * (module._MAX_TEXT + 1)),
        ("b.png", picture(11)),
        ("b.txt", b""),
        ("b.json", b'{"caption": "kept"}'),
    ]
    path = write(tmp_path / "s.tar", members)
    for _ in range(2):  # read anew, then from the index
        with pytest.warns(UserWarning, match=r"10 of 12 images are left out.*'0' of .*s.tar"):
            found = ShardSamples(path)
        assert [e["caption"] for e in [found.entry(n) for n in range(2)]] == ["shade 1", "kept"]
        assert shades(found, [0, 1]) == [1, 11]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(any),
    st.integers(1, 5),
    st.integers(0, 2**70),
    st.integers(0, 5),
)
def test_each_sample_once_and_few_shards_at_a_time(
    counts: list[int], window: int, seed: int, epoch: int
) -> None:
    ends = np.cumsum(counts)
    stream = WindowShuffle(seed, ends, window)
    draws = stream.draws(epoch)
    assert len(stream) == sum(counts)
    assert sorted(draws.positions.tolist()) == list(range(sum(counts)))
    assert (draws.passes == epoch).all()
    again = WindowShuffle(seed, ends, window).draws(epoch)
    np.testing.assert_array_equal(draws.positions, again.positions)
    shard = np.searchsorted(ends, draws.positions, side="right")
    spans = sorted((np.flatnonzero(shard == s)[[0, -1]].tolist()) for s in set(shard.tolist()))
    for place in range(len(stream)):
        assert sum(first <= place <= last for first, last in spans) <= window


def test_index_files_are_used_until_the_shard_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    original = module.read_table
    monkeypatch.setattr(
        module, "read_table", lambda path: (reads.append(Path(path).name), original(path))[1]
    )
    samples(folder)
    assert reads == ["00000.tar", "00001.tar", "00002.tar"]
    index = folder.parent / "cache/shard-index"
    assert len(list(index.glob("*.safetensors"))) == 3
    again = samples(folder)
    assert len(reads) == 3
    assert shades(again, range(8)) == list(range(8))

    write(folder / "00001.tar", [*sample("x", 50), *sample("y", 51)])
    assert shades(samples(folder), range(9)) == [0, 1, 2, 50, 51, 4, 5, 6, 7]
    os.utime(folder / "00002.tar", ns=(1, 1))
    samples(folder)
    for path in index.glob("*.safetensors"):
        path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"damaged.*it is made anew"):
        ShardSamples(folder / "00000.tar")
    monkeypatch.setattr(module, "_VERSION", module._VERSION + 1)
    samples(folder)
    assert reads[3:] == ["00001.tar", "00002.tar", "00000.tar", *(f"{n:05}.tar" for n in range(3))]


def test_index_files_where_they_are_wanted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples(folder, index_folder=tmp_path / "mine")
    assert len(list((tmp_path / "mine").glob("*.safetensors"))) == 3
    monkeypatch.setattr(module, "read_table", lambda path: 1 / 0)  # not needed
    assert shades(samples(folder, index_folder=tmp_path / "mine"), [7]) == [7]
    monkeypatch.undo()
    (tmp_path / "none").write_text("a file")
    with pytest.warns(UserWarning, match="not kept for the next run"):
        assert len(samples(folder, index_folder=tmp_path / "none")) == 8


@pytest.mark.parametrize("change", [(0, 3), (1, 10**6), (2, -1), (3, 2**62)])
def test_a_forged_index_reaches_no_other_bytes(folder: Path, change: tuple[int, int]) -> None:
    shard = ShardSamples(folder / "00001.tar")
    (index,) = (folder.parent / "cache/shard-index").glob("*.safetensors")
    arrays = {name: values.copy() for name, values in mapped(index).items()}
    arrays["rows"][0, change[0]] = change[1]
    save_file(arrays, index, {"sha256": checksum(arrays)})
    with pytest.raises(DataCorruptError, match="safetensors: damaged, delete it"):
        ShardSamples(folder / "00001.tar")
    assert len(shard) == 1


def test_no_shard(folder: Path) -> None:
    for name in (folder / "*.zip", folder, folder / "missing.tar"):
        with pytest.raises(DataNotFoundError, match=r"(zip|data|missing\.tar): no shard found"):
            ShardSamples(name)
    with pytest.raises(ValueError, match="no shard is given"):
        ShardSamples([])
    with pytest.raises(ValueError, match=r"00000.tar: the shard is given twice"):
        ShardSamples([folder / "*.tar", folder / "00000.tar"])
    with pytest.raises(ValueError, match="window=0"):
        samples(folder, window=0)
    special = write(folder / "a[1]*.tar", sample("0", 0))
    assert len(ShardSamples(special)) == 1, "a name with special signs is taken as it is"


@pytest.mark.parametrize("cut", [1, 512, 1024, 3000])
def test_cut_off_shards(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "s.tar", [m for i in range(6) for m in sample(str(i), i)])
    content = path.read_bytes()
    end = content.rstrip(b"\0")
    length = -(-len(end) // 512) * 512  # all members, without the mark at the end
    for keep in (length, length - cut):
        path.write_bytes(content[:keep])
        with pytest.raises(DataCorruptError, match=r"s\.tar: .*cut off or damaged at byte"):
            ShardSamples(path)
    path.write_bytes(content[: length + 512])  # one block of zeros is a mark
    assert len(ShardSamples(path)) == 6


def test_a_damaged_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", [m for i in range(6) for m in sample(str(i), i)])
    content = bytearray(path.read_bytes())
    content[4 * 1024 : 4 * 1024 + 20] = b"\x07" * 20
    path.write_bytes(content)
    with pytest.raises(DataCorruptError, match=r"s\.tar: .*cut off or damaged at byte 4096"):
        ShardSamples(path)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=5))
def test_any_damage_gives_a_table_or_the_right_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    members = [*sample("0", 0), *sample("1", 1, caption="a", image_id=1)]
    content = bytearray(write(path, members).read_bytes())
    for place, value in changes:
        content[place] = value
    path.write_bytes(content)
    try:
        rows = read_table(path)["rows"]
    except DataCorruptError as error:
        rows, message = np.zeros((0, 6), np.int64), str(error)
    else:
        message = "damaged.tar"
    assert "damaged.tar" in message
    assert (rows[:, 0] >= 0).all()
    assert (rows[:, :2].sum(axis=1) <= len(content)).all()


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (b"\x1f\x8b", "compressed by gzip.*Unpack it to a \\.tar"),
        (b"BZh", "compressed by bzip2"),
        (b"\xfd7zXZ", "compressed by xz"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        (b"not a tar file", "no tar file"),
    ],
)
def test_other_files_are_refused_with_advice(tmp_path: Path, begin: bytes, message: str) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(begin + b"x" * 600)
    with pytest.raises(DataCorruptError, match=rf"s\.tar.*{message}"):
        ShardSamples(path)
    path.write_bytes(b"")
    with pytest.raises(DataCorruptError, match=r"s\.tar.*no tar file"):
        ShardSamples(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_special_members_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = write(tmp_path / "s.tar", sample("0", 0))
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("1.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataCorruptError, match=r"'1\.jpg' is a link or another special member"):
        ShardSamples(path)


@pytest.mark.parametrize(
    ("name", "kind"), [("0.png", "image"), ("0.jpg", "image"), ("0.txt", "txt")]
)
def test_a_key_twice_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path / "s.tar", [*sample("0", 0), (name, b"x")])
    with pytest.raises(DataCorruptError, match=f"two files of kind {kind} for key '0'"):
        ShardSamples(path)


def test_shards_without_pairs_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", [("0.txt", b"a"), ("1.tif", b"b")])
    with pytest.raises(DataCorruptError, match=r"no pair in 1 shards, the first is .*s\.tar"):
        ShardSamples(path)
    full = write(tmp_path / "t.tar", sample("0", 3))
    assert shades(ShardSamples([path, full]), [0]) == [3]  # one of them may be empty
    with (
        pytest.warns(UserWarning, match="1 of 1 images are left out"),
        pytest.raises(DataCorruptError, match="no pair"),
    ):
        ShardSamples(write(tmp_path / "u.tar", [("0.png", picture(0))]))


def test_a_corrupt_picture_is_replaced_or_left_out_and_counted(tmp_path: Path) -> None:
    members = [m for i in range(4) for m in sample(f"key{i}", i)]
    members[2] = ("key1.png", b"no picture")
    path = write(tmp_path / "s.tar", members)
    found = ShardSamples(path, max_corrupt=0.25)
    with pytest.warns(UserWarning, match=r"s\.tar: key1\.png at byte 2560: unreadable.*1 of 4"):
        pictures, used = found.take(np.array([1, 3]), np.arange(4))
    assert [int(p[0, 0, 0]) for p in pictures] == used.tolist() == [2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once only
        assert found.take(np.array([1, 3]))[1].tolist() == [3]
    with (
        pytest.warns(UserWarning, match="unreadable"),
        pytest.raises(DataCorruptError, match="1 of 4 images are unreadable, more than max_corrup"),
    ):
        ShardSamples(path).take(np.array([1]), np.arange(4))


def test_shards_that_change_meanwhile_stop_the_run(folder: Path) -> None:
    found = samples(folder)
    write(folder / "00000.tar", sample("0", 99))
    (folder / "00001.tar").unlink()
    with pytest.raises(ShardChangedError, match=r"00000\.tar has changed since"):
        found.take(np.array([0]), np.arange(8))
    with pytest.raises(ShardChangedError, match=r"00001\.tar is gone"):
        found.entry(3)
    assert shades(found, [4]) == [4]


def test_few_files_are_open_and_copies_open_their_own(folder: Path) -> None:
    module._opened.cache_clear()
    found = samples(folder, window=1)
    order = [0, 3, 4, 1, 3, 7, 2, 0]
    assert shades(found, order) == order
    opened = module._opened.cache_info()
    assert (opened.currsize, opened.misses) == (3, 3)
    copy = pickle.loads(pickle.dumps(found))
    assert shades(copy, order) == order


def pair_data(folder: Path, **changes: Any) -> ShardPairData:
    vocab = folder / "vocab.txt"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "shade", *map(str, range(60))]
    vocab.write_text("\n".join(words))
    values: dict[str, Any] = {
        "shards": str(folder / "*.tar"),
        "window": 2,
        "files": {},
        "image_root": str(folder),
        "vocab": str(vocab),
        "augmentation": plain_views(8, 0.0, 1.0, {"op": "resize"}, {"op": "flip"}),
        "batch_size": 3,
        "val_split": None,
        "test_split": None,
    }
    data = ShardPairData(**values | changes)
    data.prepare_data()
    data.setup("fit")
    return data


def contents(batches: list[Mapping[str, torch.Tensor]]) -> list[tuple[int, int, int]]:
    """Of each sample: its number, shade and the number in its text."""
    rows = []
    for batch in batches:
        shades = (batch["images"][:, 0, 0, 0] * 255).round().int().tolist()
        numbers = (batch["input_ids"][:, 2] - 6).tolist()
        assert len(batch["image_ids"].unique()) == len(shades)
        rows += list(zip(batch["indices"].tolist(), shades, numbers, strict=True))
    return rows


def test_module_gives_pairs_in_the_order_of_the_stream(folder: Path) -> None:
    data = pair_data(folder)
    rows = contents(list(data.train_dataloader()))
    order = data.source.stream(0).draws(0).positions[:6].tolist()
    assert rows == [(i, i, i) for i in order]


def test_training_goes_on_in_the_middle_of_a_shard(folder: Path) -> None:
    whole = pair_data(folder, batch_size=2).train_dataloader()
    expected = contents(list(whole))
    first = pair_data(folder, batch_size=2).train_dataloader()
    before = contents([next(iter(first))])
    second = pair_data(folder, batch_size=2, num_workers=2).train_dataloader()
    second.load_state_dict(first.state_dict())
    assert before + contents(list(second)) == expected


def test_module_refuses_what_it_would_ignore(folder: Path) -> None:
    with pytest.raises(ValueError, match="subset can't be taken of shards"):
        pair_data(folder, subset=3)
    assert len(pair_data(folder, files={"train": None}).train_dataloader()) == 2
    with pytest.raises(ValueError, match="batch_size=9 is larger"):
        pair_data(folder, batch_size=9)


def test_drafts_of_jpegs(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "JPEG")
    path = write(tmp_path / "s.tar", [("0.jpg", buffer.getvalue()), ("0.txt", b"a word")])
    for draft, shape in ((None, (48, 64, 3)), (12, (12, 16, 3))):
        (jpeg,), _ = ShardSamples(path, draft=draft).take(np.array([0]))
        assert jpeg.shape == shape


def mixed(folder: Path, **changes: Any) -> ShardPairData:
    """Eight samples of shards and five entries of a JSON file, of shades 20 to 24."""
    for number in range(20, 25):
        (folder / f"{number}.png").write_bytes(picture(number))
    entries = [{"image": f"{n}.png", "caption": f"shade {n}"} for n in range(20, 25)]
    (folder / "pairs.json").write_text(json.dumps(entries))
    return pair_data(folder, files={"train": str(folder / "pairs.json")}, **changes)


def test_shards_and_files_are_mixed(folder: Path) -> None:
    data = mixed(folder, batch_size=1)
    first, second = data.train_dataloader(), data.train_dataloader()
    second.set_epoch(1)
    rows, others = contents(list(first)), contents(list(second))
    for found in (rows, others):
        # Number in the split, shade, number in the text: those of shards come behind.
        expected = [(i, 20 + i, 20 + i) for i in range(5)] + [(5 + i, i, i) for i in range(8)]
        assert sorted(found) == expected
    assert rows != others
    shards = [number - 5 for number, _, _ in rows if number >= 5]
    assert shards == WindowShuffle(0, np.array([3, 4, 8]), 2).draws(0).positions.tolist()
    places = [place for place, (number, _, _) in enumerate(rows) if number < 5]
    assert places not in ([*range(5)], [*range(8, 13)]), "not one after the other"


def test_worker_processes_and_a_restart_change_no_mixture(folder: Path) -> None:
    expected = contents(list(mixed(folder).train_dataloader()))
    assert len(expected) == 12
    loader = mixed(folder, num_workers=2).train_dataloader()
    loader.load_state_dict({"epoch": 0, "position": 2, "length": 4})
    assert contents(list(loader)) == expected[6:]
    with_index = mixed(folder, annotation_index=str(folder / "index"), window=1)
    assert sorted(contents(list(with_index.train_dataloader()))) != []


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_another_sample_stands_in_in_a_mixture(folder: Path) -> None:
    data = mixed(folder, batch_size=13, max_corrupt=0.5)
    (folder / "24.png").write_bytes(b"no picture")
    (batch,) = data.train_dataloader()
    assert sorted(batch["indices"].tolist()) == [0, 1, 2, 3, 5, *range(5, 13)]
    assert data.source.group(4) is None
    assert len(data.source.group(5) or ()) == 1


def test_files_in_turn_beside_shards(folder: Path) -> None:
    for name, shade in (("a", 30), ("b", 31)):
        (folder / f"{shade}.png").write_bytes(picture(shade))
        entry = {"image": f"{shade}.png", "caption": f"shade {shade}"}
        (folder / f"turn_{name}.json").write_text(json.dumps([entry]))
    data = mixed(folder, rotating=str(folder / "turn_*.json"), batch_size=1)
    for number, shade in enumerate((30, 31, 30)):
        loader = data.train_dataloader()
        loader.set_epoch(number)
        found = {row[1] for row in contents(list(loader))}
        assert found == {*range(8), *range(20, 25), shade}
