"""Pinned archives: fetched once by the machine's client, checked, read in place."""

import hashlib
import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from shared.data import packages
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.packages import Package, fetch, npm, read_member, run_client, wheel


def archive(path: Path, **members: object) -> Package:
    """Write an npm archive of JSON files; returns its package, version 1."""
    with tarfile.open(path, "w:gz") as file:
        for name, value in members.items():
            content = json.dumps(value).encode()
            about = tarfile.TarInfo(f"package/{name}.json")
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return npm("@scope/pack", "1.2.3", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TENFOLD_SOURCES", raising=False)
    return tmp_path / "cache" / "packages"


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, client: str, script: str) -> None:
    """A program in place of the client, which gets its arguments."""
    folder.mkdir(exist_ok=True)
    path = folder / client
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (_, *arguments), between = packages.CLIENTS[client]
    monkeypatch.setitem(packages.CLIENTS, client, ([str(path), *arguments], between))


def test_names_of_archives() -> None:
    assert npm("@scope/pack", "1.2.3", "").archive == "scope-pack-1.2.3.tgz"
    one = wheel("Prompt_Toolkit-3.0.53-py3-none-any.whl", "")
    assert (one.client, one.name, one.version) == ("pip", "prompt-toolkit", "3.0.53")


def test_fetched_once_by_the_client(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = archive(tmp_path / "made.tgz", info={"name": "x"})
    wheels = []
    (tmp_path / "made").mkdir()
    for name in ("a", "b_c"):
        path = tmp_path / "made" / f"{name}-1.0-py3-none-any.whl"
        path.write_text(name)
        wheels.append(wheel(path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    log = f'echo "$0" "$@" >> {tmp_path}/calls'
    npm_call = f"{log}; cp {tmp_path}/made.tgz {package.archive}"
    stand_in(monkeypatch, tmp_path / "bin", "npm", npm_call)
    stand_in(monkeypatch, tmp_path / "bin", "pip", f"{log}; cp {tmp_path}/made/*.whl .")
    wanted = [wheels[0], package, wheels[1]]
    paths = fetch(wanted)
    assert paths == fetch(wanted) == [cache / p.archive for p in wanted]
    npm_line, pip_line = (tmp_path / "calls").read_text().splitlines()
    assert npm_line.endswith(" pack --silent --ignore-scripts @scope/pack@1.2.3")
    assert "pip download --quiet --no-deps --only-binary=:all: " in pip_line
    assert pip_line.endswith("manylinux2014_x86_64 a==1.0 b-c==1.0")
    assert json.loads(read_member(paths[1], "package/info.json")) == {"name": "x"}
    paths[0].write_bytes(b"damaged")
    with pytest.raises(DataCorruptError, match=r"sha256 .* of a@1.0"):
        fetch(wanted)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo first; echo offline >&2; exit 3", r"npm: exit status 3 \(offline\)"),
        ("exit 0", "npm: gave no scope-pack-1.2.3.tgz"),
    ],
)
def test_nothing_works(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    stand_in(monkeypatch, tmp_path / "bin", "npm", script)
    with pytest.raises(DataNotFoundError, match=f"{message}.*TENFOLD_SOURCES") as error:
        fetch([npm("@scope/pack", "1.2.3", "0" * 64)])
    assert "\n" not in str(error.value)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_what_the_client_saves_is_checked_and_a_given_folder_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, tmp_path / "bin", "npm", "echo other > scope-pack-1.2.3.tgz")
    with pytest.raises(DataCorruptError, match=r"sha256 .* of @scope/pack@1.2.3"):
        fetch([npm("@scope/pack", "1.2.3", "0" * 64)])
    assert [path.name for path in cache.iterdir()] == [".lock"]
    place = tmp_path / "scope-pack-1.2.3.tgz"
    package = archive(place, info=1)
    stand_in(monkeypatch, tmp_path / "bin", "npm", "exit 1")
    monkeypatch.setenv("TENFOLD_SOURCES", str(tmp_path))
    assert fetch([package]) == [place]
    place.write_bytes(b"damaged")
    with pytest.raises(DataCorruptError, match=r"scope-pack-1.2.3.tgz: sha256 .* of @scope/pack@"):
        fetch([package])


def test_runs_end_in_a_short_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_client(["true"], tmp_path) is None
    assert run_client(["no-such-tool"], tmp_path) == "no no-such-tool on this machine"
    failing = ["sh", "-c", "echo first; echo the reason >&2; exit 3"]
    assert run_client(failing, tmp_path) == "exit status 3 (the reason)"
    monkeypatch.setattr(packages, "LONGEST_RUN", 0.05)
    assert "timed out" in (run_client(["sleep", "5"], tmp_path) or "")


def test_members_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "a.tgz", info=1)
    (tmp_path / "cut.tgz").write_bytes((tmp_path / "a.tgz").read_bytes()[:40])
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as content:
        content.writestr("x", "text")
    (tmp_path / "cut.whl").write_bytes(b"PK")
    assert read_member(tmp_path / "a.whl", "x") == b"text"
    missing = (("a.tgz", "package/icons.json"), ("a.whl", "y"))
    for file, member in (*missing, ("cut.tgz", "package/info.json"), ("cut.whl", "x")):
        with pytest.raises(DataCorruptError, match=f"{file}: {member} can't be read"):
            read_member(tmp_path / file, member)
    monkeypatch.setattr(packages, "LARGEST_MEMBER", 3)
    (tmp_path / "b.tgz").write_bytes(b"")
    archive(tmp_path / "b.tgz", info="long")
    for file, member in (("a.whl", "x"), ("b.tgz", "package/info.json")):
        with pytest.raises(DataCorruptError, match="more than 3"):
            read_member(tmp_path / file, member)
