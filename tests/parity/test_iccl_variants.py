"""The adapters take every dim, seed and value from the files: folders of other ones pass."""

from pathlib import Path

import pytest

from .harness import check, find_cases
from .make_iccl_variant import CASES, write_iccl_variant


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_other_dims_and_seeds(seed: int, tmp_path: Path) -> None:
    write_iccl_variant(tmp_path, seed)
    cases = find_cases(tmp_path)
    assert len(cases) == len(CASES)
    for case in cases:
        check(case)
