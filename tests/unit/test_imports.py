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
    papers = [paper for frame in Method.__subclasses__() for paper in frame.__subclasses__()]
    deeper = {cls for paper in papers for cls in paper.__subclasses__()}
    assert papers
    wrong = [cls for cls in deeper if cls.__module__.startswith("methods.")]
    assert all(cls.__module__.endswith(".controls") for cls in wrong), wrong
