"""The harness itself: everything that must make a golden case fail, does."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from .harness import Case, ParityError, check, find_adapter, find_cases

ATOL = 1e-3


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A case whose right answer is twice the input."""
    folder = tmp_path / "toy" / "double"
    folder.mkdir(parents=True)
    described = {"x2": {"meaning": "twice x"}, "count": {"meaning": "rows"}}
    description = {"config": {"factor": 2}, "outputs": described, "atol": ATOL, "rtol": 0.0}
    (folder / "case.json").write_text(json.dumps(description))
    save_file({"x": torch.tensor([1.0, 2.0])}, folder / "inputs.safetensors")
    outputs = {"x2": torch.tensor([2.0, 4.0]), "count": torch.tensor(2)}
    save_file(outputs, folder / "outputs.safetensors")
    return Case("toy", "double", folder)


def right(config, inputs, weights):
    return {"x2": config["factor"] * inputs["x"], "count": torch.tensor(len(inputs["x"]))}


def test_right_adapter_passes_and_may_return_more(case: Case) -> None:
    assert check(case, lambda *a: right(*a) | {"more": torch.zeros(3)}) == ["count", "x2"]


@pytest.mark.parametrize("value", [torch.nan, 4.0])
def test_what_is_undefined_there_must_be_undefined_here(case: Case, value: float) -> None:
    outputs = {"x2": torch.tensor([2.0, torch.nan]), "count": torch.tensor(2)}
    save_file(outputs, case.folder / "outputs.safetensors")

    def adapter(*arguments):
        return right(*arguments) | {"x2": torch.tensor([2.0, value])}

    if value == value:
        with pytest.raises(ParityError, match="not finite"):
            check(case, adapter)
    else:
        check(case, adapter)


def test_json_files_that_a_case_names_are_inputs(case: Case) -> None:
    description = case.description() | {"inputs": {"x": "", "more.json": "a list"}}
    (case.folder / "case.json").write_text(json.dumps(description))
    (case.folder / "more.json").write_text("[1, 2]")
    check(case, lambda *a: right(*a) | {"more": a[1]["more.json"].index(2)})


def test_one_line_may_describe_two_families_of_outputs(case: Case) -> None:
    description = case.description() | {"outputs": {"x* / count": "", "count / nowhere": ""}}
    (case.folder / "case.json").write_text(json.dumps(description))
    with pytest.raises(ParityError, match="nowhere: described"):
        check(case, right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"x2": None}, "x2: the adapter does not return it", id="fewer outputs"),
        pytest.param({"x2": torch.tensor([2.0, 4.0 + 2 * ATOL])}, "off by", id="wrong value"),
        pytest.param({"x2": torch.tensor([2.0, torch.nan])}, "not finite", id="nan"),
        pytest.param({"x2": torch.tensor([2, 4])}, "dtype", id="integer for float"),
        pytest.param({"count": torch.tensor(2.0)}, "dtype", id="float for integer"),
        pytest.param({"x2": torch.tensor([[2.0, 4.0]])}, "shape", id="shape"),
        pytest.param({"x2": torch.tensor(2.0)}, "shape", id="broadcastable"),
        pytest.param({"x2": torch.empty(0)}, "shape", id="empty"),
    ],
)
def test_difference_fails(case: Case, change: dict, message: str) -> None:
    def adapter(*arguments):
        values = right(*arguments) | change
        return {name: value for name, value in values.items() if value is not None}

    with pytest.raises(ParityError, match=message):
        check(case, adapter)


def test_adapter_cannot_loosen_the_tolerance(case: Case) -> None:
    def loose(config, inputs, weights):
        config |= {"atol": 1.0, "rtol": 1.0}
        return right(config, inputs, weights) | config | {"x2": torch.tensor([2.0, 4.1])}

    with pytest.raises(ParityError, match=r"x2: off by up to 0\.1"):
        check(case, loose)


def test_adapter_sees_no_answers(case: Case) -> None:
    seen = []
    check(case, lambda *given: seen.extend(given) or right(*given))
    assert [sorted(argument) for argument in seen] == [["factor"], ["x"], []]


@pytest.mark.parametrize("file", ["inputs.safetensors", "outputs.safetensors", "case.json"])
def test_missing_file_fails(case: Case, file: str) -> None:
    (case.folder / file).unlink()
    with pytest.raises((ParityError, FileNotFoundError), match=file.split(".")[0]):
        check(case, right)


def test_output_described_but_not_in_the_file_fails(case: Case) -> None:
    save_file({"x2": torch.tensor([2.0, 4.0])}, case.folder / "outputs.safetensors")
    with pytest.raises(ParityError, match=r"count: described in case\.json"):
        check(case, right)


def test_json_values_are_compared_too(case: Case) -> None:
    values = {"words": ["a", "b"], "score": {"bleu": 0.5}}
    (case.folder / "outputs.json").write_text(json.dumps(values))
    check(case, lambda *a: right(*a) | values)
    for wrong in ({"words": ["a", "c"]}, {"words": ["a"]}, {"score": {"bleu": 0.6}}, {"score": {}}):
        with pytest.raises(ParityError, match=next(iter(wrong))):
            check(case, lambda *a, wrong=wrong: right(*a) | values | wrong)


def test_case_without_adapter_fails(case: Case) -> None:
    with pytest.raises(ParityError, match=r"no tests/parity/toy\.py"):
        find_adapter(case)
    with pytest.raises(ParityError, match="no adapter `double`"):
        find_adapter(case, ModuleType("toy"))
    # An imported name is not an adapter: a case called `fit` must not find a helper.
    borrowed = ModuleType("toy")
    borrowed.double = shutil.copy
    with pytest.raises(ParityError, match="no adapter `double`"):
        find_adapter(case, borrowed)


def test_every_case_folder_is_found(case: Case) -> None:
    golden = case.folder.parents[1]
    (golden / "toy" / "halve").mkdir()
    assert [str(c) for c in find_cases(golden)] == ["toy/double", "toy/halve"]
    with pytest.raises(FileNotFoundError, match="no case folders under"):
        find_cases(golden, ["comatch"])


def test_each_arithmetic_is_tried_and_left_again(case: Case) -> None:
    seen = []

    def wrong(config, inputs, weights):
        made = right(config, inputs, weights)
        seen.append((torch.zeros(1).dtype, torch._C._get_mkldnn_enabled(), inputs["x"].dtype))
        return {name: value + 1 for name, value in made.items()}

    with pytest.raises(ParityError):
        check(case, wrong)
    single, double = torch.float32, torch.float64
    assert seen == [(single, True, single), (single, False, single), (double, True, double)]
    assert (torch.get_default_dtype(), torch._C._get_mkldnn_enabled()) == (single, True)
    seen.clear()
    check(case, lambda *given: seen.append(given) or right(*given))
    assert len(seen) == 1


def test_what_one_arithmetic_alone_reproduces_passes(case: Case) -> None:
    def rounded(config, inputs, weights):
        made = right(config, inputs, weights)
        exact = torch.get_default_dtype() == torch.float64
        return {name: value if exact else value + 1 for name, value in made.items()}

    with pytest.warns(UserWarning, match="toy/double: reproduced in double only"):
        assert check(case, rounded)


def test_a_described_pattern_needs_an_output_that_fits(case: Case) -> None:
    path = case.folder / "case.json"
    description = json.loads(path.read_text())
    for pattern, fits in (
        ("x*", True), ("x2 / count", True), ("x{k}", True), ("_shapes", True), ("y*", False),
    ):  # fmt: skip
        described = description | {"outputs": {pattern: {}}}
        path.write_text(json.dumps(described))
        if fits:
            assert check(case, right) == ["count", "x2"]
        else:
            with pytest.raises(ParityError, match=r"y\*: described in case.json, not in the file"):
                check(case, right)


def test_examples_in_the_description_are_inputs_and_outputs(case: Case) -> None:
    for name in ("inputs", "outputs"):
        (case.folder / f"{name}.safetensors").unlink()
    examples = {"upper": [{"text": "a", "out": "A"}, {"text": "bc", "out": "BC"}]}
    description = {"config": {}, "inputs": {"text": "see"}, "outputs": {"out": "see"}}
    numbers = {"atol": 0.0, "rtol": 0.0, "examples": examples}
    (case.folder / "case.json").write_text(json.dumps(description | numbers))
    seen = []

    def adapter(config, inputs, weights):
        seen.append(inputs)
        return {"upper": [{"out": row["text"].upper()} for row in inputs["upper"]]}

    assert check(case, adapter) == ["upper"]
    assert seen == [{"upper": [{"text": "a"}, {"text": "bc"}]}]
    with pytest.raises(ParityError, match="upper"):
        check(case, lambda *_: {"upper": [{"out": "A"}, {"out": "bc"}]})
