"""Lines of tables: what a damaged table says."""

import pytest

from shared.experiments import arms, rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- rows: [", "is no yaml"),
        ("rows: {}", "no list of blocks"),
        ("- {a: 1}", "no list of blocks"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, text, words):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "toy.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"toy\.yaml.*{words}"):
        rows("toy", tmp_path)


def test_what_stands_in_a_block_holds_for_its_rows_and_an_arm_may_stand_on_another(tmp_path):
    assert rows("toy", tmp_path) == arms("toy", tmp_path) == {}
    for folder in ("rows", "reproduce"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rows" / "toy.yaml").write_text("[{metric: m, lr: 1, rows: {a: {lr: 2}, b: }}]")
    assert rows("toy", tmp_path) == {"a": {"metric": "m", "lr": 2}, "b": {"metric": "m", "lr": 1}}
    (tmp_path / "reproduce" / "toy.yaml").write_text(
        "{prepare: {p: q/x}, arms: {a: {experiment: b, lr: 2}, b: t/x}, overrides: {seed: 5}}"
    )
    assert arms("toy", tmp_path) == {
        "p": {"experiment": "q/x", "arm": "p"},
        "a": {"experiment": "t/x", "lr": 2, "seed": 5, "arm": "a"},
        "b": {"experiment": "t/x", "seed": 5, "arm": "b"},
    }
