"""No file imports another that imports it, by whatever way round."""

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest


def test_no_two_files_import_each_other() -> None:
    graph = grimp.build_graph("shared", "methods", "benchmarks", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail("cycle: " + " <- ".join(error.args[1]))
