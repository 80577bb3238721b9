"""Pictures and videos of strangers through `tenfold predict`: read, or named and left out."""

import csv
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.data.errors import DataCorruptError
from shared.data.images import read_image
from shared.predict.inputs import PredictError, frame_choice, not_too_long
from tests.hostile.damages import DAMAGES, every
from tests.hostile.test_checkpoints import predicts
from tests.processes import run
from tests.unit.test_predict import write_checkpoint

PRECIOUS = b"not yours\n"
SHADES = np.linspace(0, 255, 40 * 40).reshape(40, 40).astype(np.uint8)
RAMP = np.repeat(SHADES[:, :, None], 3, axis=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An honest checkpoint and an honest picture."""
    write_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "images").mkdir()
    Image.fromarray(RAMP).save(tmp_path / "images" / "honest.png")
    (tmp_path / "precious.txt").write_bytes(PRECIOUS)
    return tmp_path


def table(folder: Path) -> dict[str, list[str]]:
    """Path -> the other columns of predictions.csv."""
    with (folder / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    return {row[0]: row[1:] for row in rows[1:]}


POSTSCRIPT = (  # under another name: PIL would start Ghostscript on it
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(pwned) (w) file\n"
)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, width: int, height: int, rows: int) -> None:
    """A white PNG of that size in its header, with so many rows in fact."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    packer = zlib.compressobj(9)
    line = b"\0" + b"\xff" * min(width, 1 << 20)
    data = b"".join(packer.compress(line) for _ in range(rows)) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b""))


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "postscript": lambda path: path.write_bytes(POSTSCRIPT),
    "an icon": lambda path: Image.fromarray(RAMP).save(path, "ICO"),
    "a size beyond all memory": lambda path: png(path, 2**31 - 1, 2**31 - 1, 1),
    "a size of nothing": lambda path: png(path, 0, 0, 1),
    "too many pixels": lambda path: png(path, 20_000, 20_000, 1),
    "32-bit integers": lambda path: Image.fromarray(SHADES.astype(np.int32)).save(path, "TIFF"),
    "32-bit fractions": lambda path: Image.fromarray(SHADES / np.float32(255)).save(path, "TIFF"),
    "html": lambda path: path.write_text("<script>alert(1)</script>"),
}
NO_IMAGE = {name: damage for name, damage in DAMAGES.items() if name != "missing"}


@pytest.mark.parametrize("kinds", [UNREADABLE, NO_IMAGE], ids=["unreadable", "no images"])
def test_unreadable_pictures_are_named_and_the_others_are_read(folder, capsys, kinds):
    paths = {name: folder / "images" / f"odd{n}.png" for n, name in enumerate(kinds)}
    for name, path in paths.items():
        Image.fromarray(RAMP).save(path)
        kinds[name](path)
    status, said = predicts(folder, capsys)
    rows = table(folder)
    assert (status, "honest.png" in rows) == (0, True)
    for name, path in paths.items():
        lines = [line for line in said.splitlines() if f"{path.name} " in line]
        # What is no file at all is not looked at; a picture cut off after its pixels may be read.
        assert (len(lines) == 1) != (path.name in rows) or not path.is_file(), name
    assert len(said.splitlines()) <= len(kinds)


def test_odd_names_lose_no_row(folder, capsys):
    names = ["=cmd().png", "a\nb.png", "\udcff\udcfe.png", "-x.png", "a,b.png"]
    for name in names:
        shutil.copy(folder / "images" / "honest.png", os.fsencode(folder / "images" / name))
    assert predicts(folder, capsys)[0] == 0
    rows = table(folder)
    assert len(rows) == 1 + len(names)
    assert len({tuple(values) for values in rows.values()}) == 1


NO_VIDEO: dict[str, Callable[[Path], object]] = {
    "a playlist": lambda path: path.write_bytes(b"#EXTM3U\nfile:///etc/passwd\n"),
    "a playlist in disguise": lambda path: path.write_bytes(
        b"\0\0\0\x14ftyp#EXTM3U\n/etc/passwd\n"
    ),
    "html": UNREADABLE["html"],
    "a picture": lambda path: Image.fromarray(RAMP).save(path, "PNG"),
}


def test_unreadable_videos_are_named_and_the_others_are_read(folder, capsys):
    toy: Any = pytest.importorskip("tests.unit.test_predict_videos")
    toy.save("retrieval", folder / "last.ckpt")
    videos = folder / "videos"
    videos.mkdir()
    honest = toy.written(videos / "honest.mp4", 8)
    kinds = NO_VIDEO | NO_IMAGE
    paths = {name: videos / f"odd{n}.mp4" for n, name in enumerate(kinds)}
    for name, path in paths.items():
        shutil.copy(honest, path)
        kinds[name](path)
    paths["sound"] = toy.written(videos / "sound.mp4", sound=True)
    names = ["=cmd().mp4", "$(touch pwned).mp4", "a\nb.avi", "<b>.webm", "\udcff.mkv"]
    for name in [*names, "honest.txt"]:
        shutil.copy(honest, os.fsencode(videos / name))
    given = ["images=null", f"videos={videos}", "texts=[red]", "sheet_images=9"]
    status, said = predicts(folder, capsys, *given)
    rows = table(folder)
    assert (status, "honest.txt" in rows) == (0, False)
    assert len({tuple(rows[n.replace("\udcff", r"\udcff")]) for n in ["honest.mp4", *names]}) == 1
    for name, path in paths.items():
        lines = [line for line in said.splitlines() if f"{path.name} " in line]
        assert (len(lines) == 1) != (path.name in rows) or not path.is_file(), name
    assert not {paths[name].name for name in [*NO_VIDEO, "sound", "empty"]} & set(rows)
    assert len(said.splitlines()) <= len(paths)


CHOICES: list[dict[str, Any]] = [
    {"frames": n} for n in ("2\n3", 0, 10**9, True, [2], 2.5, float("nan"))
]
CHOICES += [{"frames": 2, "test_frames": rule} for rule in ("os.system", ["uniform"], 5)]


@pytest.mark.parametrize("data", CHOICES, ids=repr)
def test_a_choice_of_frames_of_strangers(data):
    with pytest.raises(
        PredictError, match=r"last\.ckpt: its choice of frames is refused"
    ) as refused:
        frame_choice(data, Path("last.ckpt"))
    assert "\n" not in str(refused.value)


def test_16_bits_are_scaled(folder, capsys):
    wide = SHADES.astype(np.uint16) * 257
    for suffix, kind in ((".png", None), (".tif", None), (".pgm", "PPM")):
        path = folder / "images" / f"wide{suffix}"
        Image.fromarray(wide).save(path, kind)
        np.testing.assert_array_equal(read_image(path), RAMP)
        np.testing.assert_array_equal(read_image(path, "L"), SHADES)
    Image.fromarray(wide.astype(">u2")).save(folder / "big.tif")
    np.testing.assert_array_equal(read_image(folder / "big.tif", "L"), SHADES)
    Image.fromarray(SHADES.astype(np.int32)).save(folder / "a.tif")
    with pytest.raises(DataCorruptError, match="32 bits"):
        read_image(folder / "a.tif")
    assert predicts(folder, capsys)[0] == 0
    rows = table(folder)
    assert len(rows) == 4
    assert len({tuple(values) for values in rows.values()}) == 1


def test_photographs_are_turned_upright(folder, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(RAMP)))
    turned.save(folder / "images" / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(folder / "images" / "turned.png", upright=True), RAMP)
    np.testing.assert_array_equal(read_image(folder / "images" / "turned.png"), np.rot90(RAMP))
    assert predicts(folder, capsys)[0] == 0
    assert table(folder)["honest.png"] == table(folder)["turned.png"]


def test_a_line_of_pixels_is_not_enlarged_to_gigabytes():
    line = np.zeros((1, 60_000, 3), np.uint8)
    assert not_too_long(line).shape == (1, 16, 3)
    np.testing.assert_array_equal(not_too_long(RAMP), RAMP)


def test_a_large_picture_is_shrunk_by_a_whole_factor(tmp_path):
    Image.fromarray(np.repeat(np.repeat(RAMP, 3, axis=0), 3, axis=1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png", most_pixels=120 * 120 - 1),
        (read_image(tmp_path / "a.png", most_pixels=60 * 60)),
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", most_pixels=40 * 40), RAMP)
    assert read_image(tmp_path / "a.png", most_pixels=120 * 120).shape == (120, 120, 3)


@pytest.mark.slow
def test_small_files_of_large_pictures_keep_within_memory(folder):
    """Files of 170 KB each, of 170 million pixels, which were all held at once."""
    png(folder / "images" / "b0.png", 13_000, 13_000, 13_000)
    assert (folder / "images" / "b0.png").stat().st_size < 200_000
    for number in range(1, 4):
        os.link(folder / "images" / "b0.png", folder / "images" / f"b{number}.png")
    given = [f"checkpoint={folder}/last.ckpt", f"images={folder}/images", f"output={folder}/out"]
    script = (
        "import resource, sys; from shared.predict import command; command.main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = run([sys.executable, "-c", script, *given], 600)
    assert done.returncode == 0, done.stderr
    assert len(table(folder)) == 5
    assert int(done.stdout.split()[-1]) < 1_500_000  # KiB


VALUES = {
    "batch_size": ["0", "-1", "1.5", "true", "99999999999"],
    "sheet_images": ["-1"],
    "groups": ["0"],
    "overlays": ["-1"],
    "device": ["cuda", "meta", "nonsense", "cpu:99999999999"],
    "videos": ["/nowhere"],
    "frames": ["0", "1.5", "257", "x"],
    "images": ["/dev/zero", "/nowhere", "[a,b]", "''", "null"],
    "checkpoint": ["/dev/zero", "/nowhere", "/tmp", "null", "[1]"],
    "texts": ["/dev/zero", "[]", "5", "[a]"],
    "questions": ["[a]"],
    "overlay_layer": ["x"],
    "output": ["/dev/null", "''"],
}
ARGUMENTS = [f"{key}={value}" for key, values in VALUES.items() for value in values]
ARGUMENTS += ["imges=x", "+x=1", "hydra.run.dir=x", "images=${oc.env:HOME}${nothing}", "a b", "="]


@pytest.mark.parametrize("argument", every(4, ARGUMENTS))
def test_hostile_arguments_are_refused_in_one_line(folder, capsys, monkeypatch, argument):
    monkeypatch.chdir(folder)
    status, said = predicts(folder, capsys, argument)
    if argument in ("output=''", "+x=1", "hydra.run.dir=x"):  # here, and keys that nothing reads
        assert status == 0
        return
    assert status == 2, said
    assert said.count("\n") == 1, said


def test_nothing_is_written_through_a_link(folder, capsys):
    (folder / "out").mkdir()
    for name in ("predictions.csv", "contact_sheet.png", ".predictions.csv.tmp", "predictions.tmp"):
        (folder / "out" / name).symlink_to(folder / "precious.txt")
    assert predicts(folder, capsys, "sheet_images=2")[0] == 0
    assert (folder / "precious.txt").read_bytes() == PRECIOUS
    assert not (folder / "out" / "predictions.csv").is_symlink()
    assert not (folder / "out" / "contact_sheet.png").is_symlink()


def test_a_linked_output_folder_is_refused(folder, capsys):
    (folder / "elsewhere").mkdir()
    (folder / "out").symlink_to(folder / "elsewhere")
    status, said = predicts(folder, capsys)
    assert status == 2
    assert "is a link" in said
    assert list((folder / "elsewhere").iterdir()) == []
