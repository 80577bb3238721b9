"""First contact: what `tenfold` says before it loads anything, and how fast."""

import resource
import sys
from pathlib import Path

import pytest

from shared import cli
from shared.files import write_json
from tests.processes import run


def answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `tenfold` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["tenfold", *arguments])
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_a_screen_says_what_it_can_do(monkeypatch, capsys, arguments):
    status, said, _ = answer(monkeypatch, capsys, *arguments)
    assert status == 0
    assert said.count("\n") < 24
    assert max(map(len, said.split("\n"))) <= 100
    assert {"tenfold list [METHOD]", "make reproduce METHOD=comatch"} <= set(said.split("  "))


def test_the_commands_to_try_are_accepted(monkeypatch, capsys):
    from shared.overrides import check_overrides

    said = answer(monkeypatch, capsys)[1].partition("Try,")[2]
    tried = [line.split()[1] for line in said.split("\n") if line.startswith("  tenfold ")]
    assert tried == ["experiment=comatch/smoke", "list"]
    check_overrides(tried[:1])


def test_version_list_of_methods_and_help_of_predict(monkeypatch, capsys):
    assert answer(monkeypatch, capsys, "--version")[1] == "tenfold 0.1.0\n"
    status, said, _ = answer(monkeypatch, capsys, "list")
    assert status == 0
    assert all(name in said for name in ("albef", "cascode", "comatch", "iccl", "mopro", "pcl"))
    status, said, _ = answer(monkeypatch, capsys, "predict", "--help")
    assert status == 0
    assert said.startswith("tenfold predict checkpoint=FILE")
    assert "overlays" in said


def test_list_of_rows_with_paper_cost_and_state(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    for seed, status in ((1, "finished"), (2, "finished"), (3, "?")):
        folder = tmp_path / "outputs" / "comatch" / "cifar10_40" / f"seed{seed}"
        folder.mkdir(parents=True)
        write_json(folder / "results.json", {"status": status})
    (folder / "results.json").write_text("[" * 100_000)
    status, said, _ = answer(monkeypatch, capsys, "list", "comatch")
    assert status == 0
    (row,) = [line.split() for line in said.split("\n") if "comatch/cifar10_40 " in line]
    assert row[-1] == "2"
    assert {"about", "±", "93.09", "18"} <= set(row)
    assert "comatch/mini" in said.rpartition("others: ")[2]
    assert "_base" not in said
    status, said, _ = answer(monkeypatch, capsys, "list", "pcl")
    figures = [line.split() for line in said.split("\n") if "of voc07_v2 " in line]
    assert [row[-2] for row in figures] == ["47.9", "59.6", "66.2", "74.5", "78.3", "85.4"]
    status, said, _ = answer(monkeypatch, capsys, "list", "cascode")
    assert "of 6 rows" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "comach"], "'comach' is no method; one of albef, "),
        (["list", "pcl", "x"], "'pcl x' is no method"),
        (["predict"], "checkpoint and images or videos not given; usage: "),
        (["predict", "images=x"], "predict: checkpoint not given"),
        (["predict", "checkpont=x"], "did you mean checkpoint?"),
        (["experiment=comatch/minni"], "did you mean comatch/mini?"),
        (["experiment=comatch/mini", "sed=3"], "unknown key sed"),
        (
            ["experiment=comatch/cifar10_41"],
            "did you mean comatch/cifar10_40? (rows: tenfold list comatch, conf/rows/comatch.yaml)",
        ),
        (["lst"], "tenfold: "),
    ],
)
def test_refusals_are_one_line(monkeypatch, capsys, arguments, said):
    status, shown, refused = answer(monkeypatch, capsys, *arguments)
    assert (status, shown) == (2, "")
    assert said in refused
    assert refused.count("\n") == 1


@pytest.mark.parametrize("arguments", ["", "--version", "list pcl", "predict", "experiment=a/b"])
def test_nothing_heavy_is_loaded_for_an_answer(arguments):
    script = (
        "import sys; from shared import cli\n"
        f"sys.argv = ['tenfold', *{arguments.split()!r}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'pytorch_lightning', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run([sys.executable, "-c", script])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.split("\n")[-2] == "[]"
    # Of CPU time, which is what it takes on a machine that does nothing else.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
