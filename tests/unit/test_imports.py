"""The structure of the house: no two files import each other, and parts are held, not inherited."""

import pkgutil
from graphlib import CycleError, TopologicalSorter
from importlib import import_module

import grimp
import pytest

import methods
from shared.training.method import Method


def test_no_two_files_import_each_other() -> None:
    graph = grimp.build_graph("shared", "methods", "benchmarks", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail("cycle: " + " <- ".join(error.args[1]))


def test_at_most_one_class_stands_between_a_papers_module_and_method() -> None:
    for module in pkgutil.walk_packages(methods.__path__, "methods."):
        if not module.name.endswith((".__main__", ".controls")):
            import_module(module.name)
    ours = [paper for base in Method.__subclasses__() for paper in base.__subclasses__()]
    assert len(ours) > 10
    deep = [deeper for paper in ours for deeper in paper.__subclasses__()]
    of_papers = [
        d for d in deep if d.__module__.startswith("methods.") and "controls" not in d.__module__
    ]
    assert not of_papers, "a part is held, not inherited"
