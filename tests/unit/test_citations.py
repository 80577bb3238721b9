"""Citations lead somewhere, across line ends and comment marks, or are named with their line."""

from pathlib import Path

import pytest

from benchmarks.citations import problems

PAPER = """# A paper
## 3. Algorithm
### 3.1 State
### 3.2 Steps

1. first
2. second

## 10. Pitfalls

1. one
2. two

### 10.1 Elsewhere

3. three
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "papers").mkdir(parents=True)
    (tmp_path / "docs" / "papers" / "toy.md").write_text(PAPER)
    return tmp_path


def said(root: Path, text: str) -> list[str]:
    (root / "code.py").write_text(text)
    return list(problems(root / "code.py", root))


@pytest.mark.parametrize(
    "text",
    [
        "docs/papers/toy.md",
        "docs/papers/toy.md, section 3",
        "(docs/papers/toy.md, sections 3.1 to 3.2 and 10)",
        "# docs/papers/toy.md, sections 3.1,\n# 3.2 and 10. More.",
        "    docs/papers/toy.md,\n    section 3.2, item 2",
        "docs/papers/toy.md, pitfall 3",
        "docs/papers/toy.md, section 3.1; salesforce/X@9.9",
        "import spec; spec = 3",
    ],
)
def test_citations_that_lead_somewhere(root: Path, text: str) -> None:
    assert said(root, text) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("docs/papers/other.md", "no such file"),
        ("docs/papers/toy.md, section 4", "no section 4"),
        ("docs/papers/toy.md, sections 3 and 3.3", "no section 3.3"),
        ("x\n# docs/papers/toy.md, sections 3,\n# 3.4", "no section 3.4"),
        ("docs/papers/toy.md, section 3.2, item 3", "no item 3"),
        ("docs/papers/toy.md, pitfall 4", "no pitfall 4"),
        ("see spec 3.1", "no reader has"),
        ("see the\n# spec, section 3", "no reader has"),
        ("the names of the specification", "no reader has"),
        ("DESIGN section 2", "no reader has"),
        ("code-corpus.md", "no reader has"),
    ],
)
def test_citations_that_lead_nowhere(root: Path, text: str, reason: str) -> None:
    (problem,) = said(root, text)
    assert reason in problem
    cited = next(n for n, line in enumerate(text.split("\n"), 1) if line not in ("x", "see the"))
    assert problem.startswith(f"code.py:{cited}:")


def test_a_card_names_files_that_exist(root: Path) -> None:
    card = root / "README.md"
    card.write_text("`shared/gone.py`, `shared/here.py:name`, `conf/METHOD.yaml`\n")
    (root / "shared").mkdir()
    (root / "shared" / "here.py").touch()
    assert list(problems(card, root)) == ["README.md:1: '`shared/gone.py`' is no file"]
