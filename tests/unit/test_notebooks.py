"""The notebooks run, each in a process of its own, and say what their text promises."""

import json
import sys
from pathlib import Path

import pytest

from tests.processes import run

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SAYS = {"pictures_and_words": ["albef-emoji: of 1,301 names", "banana: banana", "['banana', "]}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook(notebook: Path, tmp_path: Path) -> None:
    content = json.loads(notebook.read_text())
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)  # they age
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells) + "\n")
    done = run([sys.executable, str(script)], seconds=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in SAYS[notebook.stem]:
        assert words in done.stdout
