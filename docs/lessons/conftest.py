"""`pytest docs/lessons/1-bert` tests exercises.py; with --solutions, solutions.py; --stubs wants all to fail."""

import importlib.util

import pytest
import torch

from minibert.pytest_plugin import tiny_checkpoint, tiny_classifier, tiny_config  # noqa: F401

torch.set_num_threads(1)  # the networks are tiny


def pytest_addoption(parser):
    parser.addoption("--solutions", action="store_true", help="test solutions.py in place of exercises.py")
    parser.addoption("--stubs", action="store_true", help="for untouched exercises.py: each test must fail at a stub")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--stubs"):
        for item in items:
            item.add_marker(pytest.mark.xfail(raises=NotImplementedError, strict=True, reason="a stub"))


@pytest.fixture(scope="module")
def mine(request):
    """The learner's module: exercises.py beside the test, or solutions.py."""
    name = "solutions" if request.config.getoption("--solutions") else "exercises"
    folder = request.path.parent
    spec = importlib.util.spec_from_file_location(f"{name}_{folder.name[0]}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
