"""Resolves what the sources cite: `python -m benchmarks.citations`, part of `make lint`.

A citation is `docs/papers/NAME.md`, alone or followed by `, section 3.2`, `, sections 3.1 to 3.4
and 5`, a section and `, item 5`, or `, pitfall 2` (an item of the section on pitfalls). It leads
somewhere if the file has that heading or item. Documents that no reader has are not cited at all.
What a card or a paper's page calls `shared/...py`, `conf/...yaml` and so on is a file that exists.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_NUMBER = r"\d+(?:\.\d+)*"
_LIST = rf"{_NUMBER}(?:(?:, | and | to |, and ){_NUMBER}(?![\w.]*@))*"
CITATION = re.compile(
    rf"docs/papers/(?P<name>[\w-]+)\.md"
    rf"(?:, (?P<kind>sections?|pitfalls?) (?P<numbers>{_LIST}))?(?:, item (?P<item>\d+))?"
)
UNREACHABLE = re.compile(
    rf"\bspec(?:ification)?,? (?:sections? |pitfall )?{_NUMBER}|of the spec(?:ification)?\b"
    r"|DESIGN section|code-corpus\.md|miniature-data\b"
)
FILE = re.compile(
    r"`((?:shared|methods|benchmarks|tests|conf|docs)/[a-z\d_/]+\.(?:py|yaml|md))[`:]"
)
PLACES = re.compile(r"^(README|methods/\w+/README|docs/papers/\w+|docs/search)\.md$")
EXAMPLES = re.compile("^tests/golden/|/(test_)?citations.py$")  # recorded, or wrong on purpose
_HEADING = re.compile(rf"^#+ ({_NUMBER})\.? (.*)", re.MULTILINE)
_ITEM = re.compile(r"^(\d+)\. ", re.MULTILINE)


def main() -> int:
    """Print every citation that leads nowhere; the exit status is 1 if there is one."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.yaml", "*.md"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in names.split("\n") if name and not EXAMPLES.search(name)]
    wrong = [problem for file in files if file.exists() for problem in problems(file, ROOT)]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return bool(wrong)


def problems(file: Path, root: Path) -> Iterator[str]:
    """Yield what is wrong with a file's citations, each with its line."""
    text = file.read_text(encoding="utf-8")
    # A citation may go on in the next line, behind the mark of a comment; offsets stay as they are.
    flat = re.sub(r"\n[ \t]*(?:#(?= ))?[ \t]*", lambda gap: " " + "\0" * (len(gap[0]) - 1), text)
    place = file.relative_to(root)
    # Without the zero bytes, and where each of its characters stood.
    offsets = [*(place for place, sign in enumerate(flat) if sign != "\0"), len(flat)]
    joined = flat.replace("\0", "")
    reasons = [(match, _reason(match, root)) for match in CITATION.finditer(joined)]
    found = [(match, f"leads nowhere: {reason}") for match, reason in reasons if reason]
    found += [(m, "cites a document that no reader has") for m in UNREACHABLE.finditer(joined)]
    if PLACES.search(str(place)):
        there = (match for match in FILE.finditer(joined) if not (root / match[1]).exists())
        found += [(match, "is no file") for match in there]
    for match, said in found:
        line = text.count("\n", 0, offsets[match.start()]) + 1
        yield f"{place}:{line}: {match[0]!r} {said}"


def _reason(match: re.Match[str], root: Path) -> str | None:
    file = root / "docs" / "papers" / f"{match['name']}.md"
    if not file.is_file():
        return "there is no such file"
    sections = _sections(file)
    if match["numbers"] is None:
        return None
    cited = re.findall(_NUMBER, match["numbers"])
    if match["kind"].startswith("pitfall"):
        items = next((s for title, s in sections.values() if "itfall" in title), frozenset[str]())
        missing = [number for number in cited if number not in items]
        return f"no pitfall {', '.join(missing)}" if missing else None
    if missing := [number for number in cited if number not in sections]:
        return f"no section {', '.join(missing)}"
    if (item := match["item"]) is not None and item not in sections[cited[-1]][1]:
        return f"section {cited[-1]} has no item {item}"
    return None


@cache
def _sections(file: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Number of each section -> its title, and the numbers of its items and its subsections'."""
    text = file.read_text(encoding="utf-8")
    headings = list(_HEADING.finditer(text))
    found = {}
    for place, heading in enumerate(headings):
        later = (h for h in headings[place + 1 :] if not h[1].startswith(f"{heading[1]}."))
        end = next((h.start() for h in later), len(text))
        found[heading[1]] = heading[2], frozenset(_ITEM.findall(text[heading.end() : end]))
    return found


if __name__ == "__main__":
    sys.exit(main())
