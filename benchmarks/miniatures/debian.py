"""Archives of Debian packages: fetched by apt with lists of its own, checked, read in place.

The machine's package sources, lists and installed packages stay as they are.
"""

import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from benchmarks.miniatures.archives import Command, fetch_pinned
from shared.data.errors import DataCorruptError

SYSTEM = Path("/etc/apt")  # where this machine's sources are listed
_FIELD = re.compile(r"(?m)^([A-Za-z-]+):[ \t]*((?:.*)(?:\n[ \t].*)*)")
_FLAT = re.compile(r"(?m)^Suites:\s*\S*/\s*$")  # of packages only, without an index of sources
_ONE_LINE = re.compile(r"(?m)^deb(?=\s+(?:\[[^\]]*\]\s+)?\S+\s+[^\s/]+\s)")


@dataclass(frozen=True)
class DebianArchive:
    """A file of a package, pinned by its sha256.

    Attributes:
        version: as apt knows it, epoch included.
        archive: the file name that apt gives.
        source: whether the file belongs to the source package of this name.
    """

    name: str
    version: str
    archive: str
    sha256: str
    source: bool = False


@dataclass(frozen=True)
class Terms:
    """A paragraph of a machine-readable debian/copyright.

    Attributes:
        files: patterns of paths; in them "*" stands for "/" too.
        licence: its short name.
    """

    files: tuple[str, ...]
    licence: str
    holder: str


def binary(archive: str, sha256: str) -> DebianArchive:
    """From a file name as "ruby-mail_2.8.1-2_all.deb"; a colon in it is written "%3a"."""
    name, version, _ = archive.split("_")
    return DebianArchive(name, unquote(version), archive, sha256)


@dataclass(frozen=True)
class DebianSource(DebianArchive):
    """The original archive of a source package.

    Attributes:
        packaging, packaging_sha256: the archive of Debian's own files, which holds the licences.
    """

    source: bool = True
    packaging: str = ""
    packaging_sha256: str = ""


def fetch(archives: Sequence[DebianArchive]) -> list[Path]:
    """Return the files, checked; fetches those not on this machine yet.

    Raises:
        DataNotFoundError: some are missing and apt could not fetch them, as where there is none or
            where the machine's sources have another version.
        DataCorruptError: a file is not the pinned one.
    """
    advice = "Use a machine with apt and Debian's sources (a container does) and"
    with tempfile.TemporaryDirectory(prefix="apt-") as private:
        return fetch_pinned(archives, "apt", partial(_commands, Path(private)), advice)


def fetch_sources(sources: Sequence[DebianSource]) -> list[Path]:
    """Return the original archives; the packaging lies beside each. Raises as `fetch`."""
    packagings = [
        DebianArchive(s.name, s.version, s.packaging, s.packaging_sha256, source=True)
        for s in sources
    ]
    return fetch([*sources, *packagings])[: len(sources)]


def installed(archive: Path) -> bytes:
    """The tar archive in a .deb with what it installs.

    A .deb is an `ar` archive: of each member 60 bytes of header, then the file.

    Raises:
        DataCorruptError: it can't be read.
    """
    deb = archive.read_bytes()
    position = 8
    while deb.startswith(b"!<arch>\n") and position + 60 <= len(deb):
        header = deb[position : position + 60]
        position += 60
        if not header[48:58].strip().isdigit():
            break
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return deb[position : position + size]
        position += size + size % 2
    raise DataCorruptError(f"{archive}: not a Debian package, or a damaged one")


def read_copyright(text: str) -> list[Terms]:
    """The paragraphs about files, without those about Debian's own; none in a free text."""
    fields = [dict(_FIELD.findall(paragraph)) for paragraph in re.split(r"\n[ \t]*\n", text)]
    return [
        Terms(
            files=files,
            licence=f.get("License", "").split("\n")[0].strip(),
            holder=" ".join(f.get("Copyright", "").split()),
        )
        for f in fields
        if (files := tuple(p for p in f.get("Files", "").split() if not p.startswith("debian/")))
    ]


def _commands(private: Path, missing: Sequence[DebianArchive]) -> list[Command]:
    apt = shutil.which("apt-get")
    if apt is None:
        return []
    binaries = [f"{p.name}={p.version}" for p in missing if not p.source]
    sources = sorted({f"{p.name}={p.version}" for p in missing if p.source})
    steps = [["update"]]
    if binaries:
        steps.append(["download", *binaries])
    if sources:  # without their .dsc, which not every mirror has
        steps += [["source", "--download-only", o, *sources] for o in ("--tar-only", "--diff-only")]
    configuration = _configuration(private, with_sources=bool(sources))
    call = [apt, "-c", str(configuration), "--quiet"]
    return [("apt-get", ["sh", "-c", " && ".join(shlex.join([*call, *s]) for s in steps)])]


def _configuration(folder: Path, with_sources: bool) -> Path:
    """Apt's settings for lists and caches in `folder`, from this machine's package sources."""
    parts = folder / "sources.list.d"
    for place in ("lists/partial", "cache/archives/partial", parts.name):
        (folder / place).mkdir(parents=True, exist_ok=True)
    listed = [SYSTEM / "sources.list", *sorted((SYSTEM / "sources.list.d").glob("*"))]
    for path in (p for p in listed if p.suffix in (".list", ".sources") and p.is_file()):
        text = path.read_text()
        (parts / path.name).write_text(and_sources(text) if with_sources else text)
    (folder / "sources.list").touch()
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": parts,
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",  # its own user could not read the folder
        "Acquire::Languages": "none",
    }
    path = folder / "apt.conf"
    path.write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    return path


def and_sources(listed: str) -> str:
    """A list of package sources in either of apt's formats, with source packages as well."""
    paragraphs = re.split(r"\n[ \t]*\n", listed)
    for i, paragraph in enumerate(paragraphs):
        if not _FLAT.search(paragraph):
            paragraphs[i] = re.sub(r"(?m)^Types:.*$", "Types: deb deb-src", paragraph)
    text = "\n\n".join(paragraphs)
    lines = [line for line in text.split("\n") if _ONE_LINE.match(line)]
    return "\n".join([text, *(_ONE_LINE.sub("deb-src", line) for line in lines)])
