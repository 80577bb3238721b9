"""Readers of folders, lists, archives and WebVision: order, labels, every kind of damage."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from shared.data import fetching
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.images import ArrayImages, FolderImages
from shared.data.readers.folders import archive, image_folder, list_file, read_list
from shared.data.readers.webvision import webvision


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, 0)).save(path)
    return path


def shades(images: FolderImages | ArrayImages) -> list[int]:
    pixels, _ = images.take(np.arange(len(images)))
    return [int(p[0, 0, 0]) for p in pixels]


# --- folders -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b/2.png", "b/10.png", "a/z.png", "a/sub/y.PNG", "a/Q.png")):
        picture(tmp_path / "train" / name, 10 * number)
    (tmp_path / "train" / "b" / "notes.txt").touch()
    picture(tmp_path / "test" / "b" / "1.png", 200)
    return tmp_path


def test_images_are_listed_as_by_torchvision(folder: Path) -> None:
    images = image_folder(folder, "train")
    expected = ImageFolder(str(folder / "train"))
    assert isinstance(images, FolderImages)
    found = [(images.path(i), int(images.labels[i])) for i in range(len(images))]
    assert found == expected.samples
    assert images.class_names == tuple(expected.classes) == ("a", "b")


def test_classes_keep_the_numbers_of_the_training_set(folder: Path) -> None:
    test = image_folder(folder, "test")
    assert test.labels.tolist() == [1]  # ImageFolder alone would call the only class 0
    assert test.class_names == ("a", "b")
    assert image_folder(folder, "val", {"val": "test"}).labels.tolist() == [1]
    picture(folder / "test" / "c" / "1.png")
    with pytest.raises(DataCorruptError, match=r"test/c.*no class of that name"):
        image_folder(folder, "test")


def test_folders_without_images_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "empty").mkdir()
    with pytest.raises(DataCorruptError, match="no image of class 'empty'"):
        image_folder(folder, "train")
    root = tmp_path / "other"
    with pytest.raises(DataNotFoundError, match=r"train not found.*data_root=DIR"):
        image_folder(root, "train")
    (root / "train").mkdir(parents=True)
    with pytest.raises(DataNotFoundError, match=r"expected .*<class>/<image>"):
        image_folder(root, "train")


def test_in_memory_holds_the_same_pixels(folder: Path) -> None:
    read = image_folder(folder, "train")
    held = image_folder(folder, "train", in_memory=True)
    assert isinstance(held, ArrayImages)
    assert held.images.shape == (5, 8, 8, 3)
    assert shades(held) == shades(read)
    assert held.labels.tolist() == read.labels.tolist()
    assert image_folder(folder, "train", in_memory=4).take(np.arange(2))[0].shape == (2, 4, 4, 3)  # type: ignore[union-attr]
    assert image_folder(folder, "train", in_memory=True, mode="L").images.shape == (5, 8, 8)  # type: ignore[union-attr]
    odd = picture(folder / "train" / "b" / "3.png", size=(9, 8))
    with pytest.raises(DataCorruptError, match=r"3\.png: \(8, 9\) pixels.*set in_memory"):
        image_folder(folder, "train", in_memory=True)
    assert len(image_folder(folder, "train", in_memory=8)) == 6
    odd.write_bytes(b"broken")
    with pytest.raises(DataCorruptError, match=r"3\.png: unreadable"):
        image_folder(folder, "train", in_memory=8)


# --- lists -------------------------------------------------------------------------------------


def test_list_file(folder: Path) -> None:
    (folder / "x_train.txt").write_text(
        "train/b/10.png 1\n\ntrain/a/z.png\t0\ntrain/a/Q.png 0\ntrain/b/2.png  2\n"
    )
    images = list_file(folder, "train", "x_{split}.txt")
    assert shades(images) == [10, 20, 40, 0]
    assert images.labels.tolist() == [1, 0, 0, 2]
    assert images.class_names == ("0", "1", "2")  # folder b has two labels
    few = list_file(folder, "train", "x_{split}.txt", num_classes=2)
    assert few.labels.tolist() == [1, 0, 0]
    assert few.class_names == ("a", "b")


def test_list_of_images_elsewhere_with_spaces_in_their_names(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "my cat.png", 7)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val.txt").write_text("my cat.png 4\n")
    images = list_file(tmp_path / "lists", "val", "{split}.txt", tmp_path / "images", num_classes=9)
    assert shades(images) == [7]
    assert images.labels.tolist() == [4]  # other splits than "train" may lack classes
    with pytest.raises(DataCorruptError, match="no image of class"):
        list_file(tmp_path / "lists", "train", "val.txt", tmp_path / "images", num_classes=9)


def test_bad_lines_are_named_as_are_lists_of_no_image_and_of_a_missing_one(tmp_path: Path) -> None:
    for line in ("a.png", "a.png one", "a.png -1", "a.png 1.0", " 3"):
        (tmp_path / "l.txt").write_text(f"b.png 0\n\n{line}\n")
        with pytest.raises(DataCorruptError, match=r"l\.txt, line 3: .* is not 'path label'"):
            read_list(tmp_path / "l.txt")
    (tmp_path / "l.txt").write_text("a.png 5\n")
    with pytest.raises(DataCorruptError, match="lists no image"):
        read_list(tmp_path / "l.txt", num_classes=5)
    with pytest.raises(DataNotFoundError, match=r"a\.png not found.*l\.txt lists it"):
        list_file(tmp_path, "val", "l.txt")


# --- archives ----------------------------------------------------------------------------------


def test_archive(tmp_path: Path) -> None:
    images = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    contents = {"images": images, "labels": [1, 0, 1, 0], "class_names": ["x", "y"]}
    np.savez(tmp_path / "e_train.npz", **contents)  # type: ignore[arg-type]
    found = archive(tmp_path, "train", "e_{split}.npz")
    np.testing.assert_array_equal(found.images, images)
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.class_names == ("x", "y")
    with pytest.raises(DataNotFoundError, match=r"e_val\.npz not found.*make data"):
        archive(tmp_path, "val", "e_{split}.npz")


# --- WebVision ---------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Path:
    (tmp_path / "info").mkdir()
    google = [("google/q1/a.png", 0), ("google/q1/b.png", 1), ("google/q2/c.png", 2)]
    flickr = [("flickr/q1/d.png", 1), ("google/q1/a.png", 1), ("flickr/q1/e.png", 0)]
    for source, lines in (("google", google), ("flickr", flickr)):
        text = "".join(f"{path} {label}\n" for path, label in lines)
        (tmp_path / "info" / f"train_filelist_{source}.txt").write_text(text)
    for number, name in enumerate("abcde"):
        path = dict(zip("abcde", [p for p, _ in google] + [p for p, _ in flickr[::2]], strict=True))
        picture(tmp_path / path[name], 10 * number)
    (tmp_path / "info" / "val_filelist.txt").write_text("v1.png 1\nv0.png 0\nv2.png 2\n")
    for number in range(3):
        picture(tmp_path / "val_images_256" / f"v{number}.png", 100 + number)
    return tmp_path


def test_webvision_lists_google_then_flickr_and_keeps_the_last_label(web: Path) -> None:
    images = webvision(web, "train", num_classes=3)
    assert shades(images) == [0, 10, 20, 30, 0, 40]
    assert images.labels.tolist() == [1, 1, 2, 1, 1, 0]
    test = webvision(web, "test", num_classes=3)
    assert shades(test) == [101, 100, 102]
    assert test.labels.tolist() == [1, 0, 2]


def test_webvision_takes_the_lists_that_are_named(web: Path) -> None:
    google = webvision(web, "train", num_classes=3, lists=["google"])
    assert (shades(google), google.labels.tolist()) == ([0, 10, 20], [0, 1, 2])
    with pytest.raises(
        ValueError, match=r"lists=\['bing'\]: expected one or more of google, flickr"
    ):
        webvision(web, "train", num_classes=3, lists=["bing"])


def test_webvision_that_is_not_there_says_where_it_comes_from(web: Path, tmp_path: Path) -> None:
    assert "webvision" in fetching.webvision(web)
    with pytest.raises(
        DataNotFoundError, match=r"its page: data\.vision.*unpack them all in .*none"
    ):
        fetching.webvision(tmp_path / "none")


def test_webvision_drops_the_labels_beyond_num_classes(web: Path) -> None:
    few = webvision(web, "train", num_classes=2, in_memory=True)
    assert shades(few) == [0, 10, 30, 0, 40]
    assert few.class_names == ("0", "1")
    assert len(webvision(web, "val", num_classes=2)) == 2
    with pytest.raises(DataCorruptError, match="no image of class '3'"):
        webvision(web, "train", num_classes=4)
    (web / "info" / "class_names.txt").write_text("tench\ngoldfish\nshark\n")
    assert webvision(web, "train", num_classes=2).class_names == ("tench", "goldfish")
    with pytest.raises(DataCorruptError, match="3 names, num_classes=4"):
        webvision(web, "val", num_classes=4)


def test_webvision_cleaned(web: Path) -> None:
    """Order is kept; a class may be gone; the validation list stays."""
    note = web / "clean.json"
    note.write_text('{"images": ["flickr/q1/d.png", "google/q1/a.png"], "labels": [2, 0]}')
    images = webvision(web, "train", num_classes=3, cleaned=note)
    assert shades(images) == [30, 0]
    assert images.labels.tolist() == [2, 0]
    assert len(webvision(web, "test", num_classes=3, cleaned=note)) == 3


def test_webvision_reads_truncated_files_as_far_as_they_go(web: Path) -> None:
    path = web / "google" / "q1" / "b.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-200])
    pixels, used = webvision(web, "train", num_classes=3).take(np.array([1]))
    assert used.tolist() == [1]
    assert pixels[0].shape == (64, 64, 3)
    strict = FolderImages([path], np.zeros(1), ["x"], "strict", max_corrupt=1)
    with pytest.warns(UserWarning, match="truncated"):
        assert strict.take(np.array([0]))[1].size == 0


def test_webvision_missing(web: Path) -> None:
    (web / "google" / "q1" / "a.png").unlink()
    with pytest.raises(DataNotFoundError, match=r"a\.png not found"):
        webvision(web, "train", num_classes=3)
    with pytest.raises(ValueError, match="expected one of train, val, test"):
        webvision(web, "extra", num_classes=3)
