"""The mutants can be planted, and only a failing test counts as catching one."""

from pathlib import Path

import pytest

from benchmarks.mutants import Mutant, MutantError, judge, load_mutants

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
LISTS = {path.stem: load_mutants(path) for path in sorted(HERE.glob("*.yaml"))}


@pytest.mark.parametrize("method", LISTS)
def test_each_can_be_planted_and_is_another(method: str) -> None:
    """Another within a method's list: a mutant of the floor is every method's to catch."""
    mutants = LISTS[method]
    for mutant in mutants:
        changed = mutant.changed(ROOT)
        assert changed != (ROOT / mutant.file).read_text()
        compile(changed, mutant.file, "exec")
    assert len({(m.file, m.old, m.new) for m in mutants}) == len(mutants)
    assert len({m.reason for m in mutants}) == len(mutants)
    assert len(mutants) >= 15


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [("x", "y", "occurs 2 times"), ("z", "y", "occurs 0 times"), ("1", "1", "equals `new`")],
)
def test_ambiguous_mutant_is_refused(old: str, new: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("x = x + 1\n")
    with pytest.raises(MutantError, match=problem):
        Mutant("code.py", old, new, "a reason").changed(tmp_path)
    with pytest.raises(MutantError, match=r"no file other\.py"):
        Mutant("other.py", old, new, "a reason").changed(tmp_path)


@pytest.mark.parametrize(
    ("status", "result"),
    [(0, "SURVIVED"), (1, "caught"), *((n, "INVALID") for n in (2, 4, -11)), (None, "TIMEOUT")],
)
def test_only_a_failing_test_catches(status: int | None, result: str) -> None:
    output = "FAILED tests/parity/test_golden.py::test_golden[comatch/train_step] - off"
    verdict, by = judge(status, output)
    assert verdict == result
    if result == "caught":
        assert by == "test_golden[comatch/train_step]"
