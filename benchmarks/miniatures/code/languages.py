"""The corpus in JavaScript, Go, PHP, Ruby and Java: archives of npm and Debian (section 5)."""

import fnmatch
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.miniatures import debian, packages
from benchmarks.miniatures.code.checks import OPENING
from benchmarks.miniatures.code.language import Language, Licence, SourceFile, common_problem
from benchmarks.miniatures.debian import DebianArchive, DebianSource
from benchmarks.miniatures.packages import NpmPackage
from methods.cascode.cleaning import query_tokens
from methods.cascode.extraction import Function, functions
from shared.data.errors import DataCorruptError

LONGEST_LINE = 2000  # characters of JavaScript that a person wrote
_BLOCK_TAG = re.compile(r"(?m)^[ \t]*@")
_RDOC = (re.compile(r"</?(?:tt|code|b|i|em)>"), re.compile(r"(?<![\w+])\+([\w.:#?!=]+)\+(?!\w)"))
_INHERITED = re.compile(r"\{@inheritdoc\}|@inheritdoc\b", re.IGNORECASE)
_GENERATED = re.compile(r"(?m)^// Code generated .* DO NOT EDIT\.$")
_CONTACT = re.compile(r"\s*[<(].*")  # "Name <address> (page)"
_LICENCE_FILE = re.compile(r"package/(?:licen[cs]e|copying|notice)[^/]*", re.IGNORECASE)
_COPYRIGHT_FILE = re.compile(r"(?:usr/share/doc/[^/]+|debian)/copyright")
_SPDX = {  # of the permissive ones in debian/copyright
    "expat": "MIT",
    "mit": "MIT",
    "isc": "ISC",
    "apache-2": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd": "BSD",
    "zlib": "Zlib",
    "public-domain": "Public Domain",
}


@dataclass(frozen=True)
class Rules:
    """What of a language's archives is left out before any query is looked at.

    Attributes:
        suffixes: of its source files.
        skipped: found in a path, it names copies, builds and generated files.
        written: whether a person wrote a text.
        protocol: names of functions that say nothing of what they do.
    """

    suffixes: tuple[str, ...]
    skipped: re.Pattern[str]
    protocol: Callable[[str], bool]
    written: Callable[[str], bool] = lambda text: True


RULES = {
    "javascript": Rules(
        (".js", ".mjs", ".cjs", ".jsx"),
        re.compile(r"(?:^|/)(?:dist|build|umd|cjs|es|min|vendor|libs|node_modules)/|\.min\."),
        {"toString", "toLocaleString", "valueOf", "constructor"}.__contains__,
        lambda text: all(len(line) <= LONGEST_LINE for line in text.split("\n")),
    ),
    "go": Rules(
        (".go",),
        re.compile(r"(?:^|/)vendor/"),
        frozenset[str]().__contains__,
        lambda text: not _GENERATED.search(text),
    ),
    "php": Rules((".php",), re.compile(r"(?:^|/)vendor/"), lambda name: name.startswith("__")),
    "ruby": Rules(
        (".rb",),
        re.compile(r"(?:^|/)vendor/"),
        {
            *("initialize", "hash", "eql?", "dup", "clone", "to_s", "display"),
            *("==", "!=", "===", "<=>", "=~", "<", "<=", ">", ">="),
        }.__contains__,
    ),
    "java": Rules(
        (".java",),
        re.compile(r"(?:^|/)vendor/"),
        {
            *("toString", "hashCode", "equals", "clone"),
            *("finalize", "notify", "notifyAll"),
        }.__contains__,
    ),
}


def source_files(language: str, contents: Mapping[str, bytes]) -> Iterator[SourceFile]:
    """The source files of an archive by path, with the reason where one is left out."""
    rules = RULES[language]
    for path, content in contents.items():
        if "test" in path.lower():
            yield SourceFile(path, "", "test")
        elif rules.skipped.search(path):
            yield SourceFile(path, "", "vendored")
        else:
            try:
                text = content.decode()
            except UnicodeDecodeError:
                yield SourceFile(path, "", "not UTF-8")
                continue
            problem = None if rules.written(text) else "generated"
            yield SourceFile(path, "" if problem else text, problem)


def problem(language: str, function: Function, query: list[str]) -> str | None:
    """The rules of section 3 and of the language."""
    if not function.documentation:
        return "undocumented"
    if _INHERITED.search(function.documentation):
        return "inherited documentation"
    if language == "java" and _is_constructor(function.name):
        return "name"
    if found := common_problem(function, query, RULES[language].protocol):
        return found
    if query[-1] == "{":  # CodeSearchNet's summary ends at the "@" of `{@link ...}`
        return "query: cut"
    opening = " ".join(function.documentation.split())[:OPENING]
    return "quoted" if opening in " ".join(function.tokens) else None


def tagged_query(documentation: str) -> list[str]:
    """Query of JSDoc, Javadoc and PHPDoc: of the text before the first `@param` and the like.

    CodeSearchNet cuts at an "@" within the text only where no empty line ends its first paragraph:
    the one before the tags counts, so they are cut behind their own "@".
    """
    tag = _BLOCK_TAG.search(documentation)
    return query_tokens(documentation[: tag.end()] if tag else documentation)


def rdoc_query(documentation: str) -> list[str]:
    """Query of RDoc without its markup: `<tt>x</tt>` and `+x+` are x."""
    tags, pluses = _RDOC
    return query_tokens(pluses.sub(r"\1", tags.sub("", documentation)))


def npm_files(language: str, archive: Path) -> Iterator[SourceFile]:
    """See `source_files`."""
    suffixes = RULES[language].suffixes
    members = _members(archive, lambda path: path.endswith(suffixes))
    return source_files(language, {p.partition("/")[2]: text for p, text in members.items()})


def npm_licence(archive: Path) -> Licence:
    """From package.json and the licence files beside it."""
    about = packages.read_json(archive, "package.json")
    author = about.get("author") or next(iter(about.get("contributors") or []), "")
    holder = author.get("name") if isinstance(author, dict) else _CONTACT.sub("", author)
    texts = _members(archive, lambda path: bool(_LICENCE_FILE.fullmatch(path)))
    text = "\n\n".join(content.decode(errors="replace").strip() for content in texts.values())
    return Licence(str(about.get("license", "unknown")), str(holder or "its authors"), text)


def debian_files(language: str, archive: Path) -> Iterator[SourceFile]:
    """See `source_files`; of a .deb what it installs, of a source archive all.

    Files are left out that debian/copyright puts under terms which are not permissive.
    """
    suffixes = RULES[language].suffixes
    contents = _members(archive, lambda path: path.endswith(suffixes))
    patterns = [
        fnmatch.translate(pattern)
        for terms in debian.read_copyright(_copyright(archive))
        if not _is_permissive(_spdx(terms.licence))
        for pattern in terms.files
    ]
    # The paths are those of the source package: installed ones end like them.
    foreign = re.compile("|".join(rf"(?s:.*/)?{pattern}" for pattern in patterns) or r"(?!)")
    for file in source_files(language, contents):
        yield SourceFile(file.path, "", "licence") if foreign.match(file.path) else file


def debian_licence(archive: Path) -> Licence:
    """From debian/copyright: the terms of `Files: *`.

    Raises:
        DataCorruptError: there is no such file.
    """
    text = _copyright(archive)
    terms = next((t for t in debian.read_copyright(text) if "*" in t.files), None)
    if terms is None:
        return Licence("unknown", "its authors", text)
    return Licence(_spdx(terms.licence), terms.holder or "its authors", text)


def _copyright(archive: Path) -> str:
    """In the .deb, or in the packaging beside a source archive."""
    home = archive
    if archive.suffix != ".deb":
        pattern = archive.name.partition(".orig.tar.")[0] + "-*.debian.tar.*"
        beside = sorted(archive.parent.glob(pattern))
        if len(beside) != 1:
            raise DataCorruptError(
                f"{archive}: {len(beside)} files {pattern} beside it instead of 1; keep the one "
                "that packages/java.yaml names in the same folder"
            )
        home = beside[0]
    found = _members(home, lambda path: bool(_COPYRIGHT_FILE.fullmatch(path)))
    if not found:
        raise DataCorruptError(f"{home}: no debian/copyright")
    return next(iter(found.values())).decode(errors="replace").strip()


def _spdx(short: str) -> str:
    """A licence as debian/copyright abbreviates it, also several joined by "and" and "or"."""
    alternatives = [re.split(r",?\s+and\s+", part) for part in re.split(r",?\s+or\s+", short)]
    return " OR ".join(
        " AND ".join(_SPDX.get(name.lower(), name) for name in names) for names in alternatives
    )


def _is_permissive(licence: str) -> bool:
    """Whether one of the alternatives consists of permissive ones."""
    return any(
        all(name in _SPDX.values() for name in alternative.split(" AND "))
        for alternative in licence.split(" OR ")
    )


def _is_constructor(name: str) -> bool:
    """Whether a qualified name ends in that of its own class."""
    *_, scope, own = ["", *name.split(".")]
    return scope == own


def _members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Contents of files by path, sorted."""
    found = {}
    try:
        content = debian.installed(archive) if archive.suffix == ".deb" else archive.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                path = member.name.removeprefix("./")
                if member.isfile() and wanted(path) and (file := tar.extractfile(member)):
                    found[path] = file.read()
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, zlib.error) as error:
        raise DataCorruptError(f"{archive}: can't be read ({error})") from error
    return dict(sorted(found.items()))


def _npm_package(entry: Mapping[str, Any]) -> NpmPackage:
    return NpmPackage(entry["name"], entry["version"], entry["sha256"])


def _debian_archive(entry: Mapping[str, Any]) -> DebianArchive:
    return debian.binary(entry["archive"], entry["sha256"])


def _debian_source(entry: Mapping[str, Any]) -> DebianSource:
    return DebianSource(
        name=entry["archive"].partition("_")[0],
        version=entry["packaging"].partition("_")[2].partition(".debian.tar.")[0],
        archive=entry["archive"],
        sha256=entry["sha256"],
        packaging=entry["packaging"],
        packaging_sha256=entry["packaging_sha256"],
    )


_NPM: dict[str, Any] = {
    "scheme": "npm",
    "pinned": _npm_package,
    "fetch": packages.fetch,
    "licence": npm_licence,
}
_DEBIAN: dict[str, Any] = {
    "scheme": "deb",
    "pinned": _debian_archive,
    "fetch": debian.fetch,
    "licence": debian_licence,
}
_DEBIAN_SOURCE: dict[str, Any] = {
    "scheme": "debsrc",
    "pinned": _debian_source,
    "fetch": debian.fetch_sources,
    "licence": debian_licence,
}


def _language(
    name: str,
    archives: Mapping[str, Any],
    files: Callable[[str, Path], Iterator[SourceFile]],
    query: Callable[[str], list[str]],
) -> Language:
    return Language(
        name=name,
        files=partial(files, name),
        functions=partial(functions, language=name),
        problem=partial(problem, name),
        query=query,
        tools=("tree-sitter", f"tree-sitter-{name}"),
        **archives,
    )


OTHERS = (
    _language("javascript", _NPM, npm_files, tagged_query),
    _language("go", _DEBIAN, debian_files, query_tokens),
    _language("php", _DEBIAN, debian_files, tagged_query),
    _language("ruby", _DEBIAN, debian_files, rdoc_query),
    _language("java", _DEBIAN_SOURCE, debian_files, tagged_query),
)
