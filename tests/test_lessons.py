"""docs/lessons: what can be said without running them. `.ci/run` runs them, their tests, and their stubs."""

import ast
import importlib.util
import re

import pytest
from conftest import ROOT

LESSONS = sorted((ROOT / "docs" / "lessons").glob("[0-9]-*"))


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path):
    """{name: the function} of a file."""
    return {node.name: node for node in tree_of(path).body if isinstance(node, ast.FunctionDef)}


def body(function):
    """Without its docstring, as text."""
    return "\n".join(map(ast.unparse, function.body[1:]))


@pytest.mark.parametrize("folder", LESSONS, ids=lambda folder: folder.name)
def test_exercises_are_the_solutions_without_their_bodies(folder):
    stubs, solved = (functions(folder / f"{name}.py") for name in ("exercises", "solutions"))
    assert list(stubs) == list(solved)
    for name, stub in stubs.items():
        assert ast.unparse(stub.args) == ast.unparse(solved[name].args), name
        assert ast.get_docstring(stub) == ast.get_docstring(solved[name]), name
        assert "NotImplementedError" in body(stub) or body(stub) == body(solved[name]), name
        assert "NotImplementedError" not in body(solved[name]), name


@pytest.mark.parametrize("folder", LESSONS, ids=lambda folder: folder.name)
def test_a_lesson_names_its_exercises_in_their_order(folder):
    page = (folder / "lesson.md").read_text(encoding="utf-8")
    named = re.findall(rf"\b{folder.name[0]}\.\d\b", " ".join(re.findall(r"^\*Exercises? .*?\*$", page, re.M | re.S)))
    numbered = re.findall(r"^# Exercise (\d\.\d)$", (folder / "exercises.py").read_text(encoding="utf-8"), re.M)
    assert named == numbered == [f"{folder.name[0]}.{i + 1}" for i in range(len(numbered))]
    assert numbered


def test_solutions_of_the_first_lesson_fit_250_lines():
    assert len((LESSONS[0] / "solutions.py").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("run_lessons", ROOT / "docs" / "lessons" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("said", "printed", "exact", "about"),
    [
        ("loss 1.79", "loss  1.80", True, True),
        ("loss 1.79", "loss 1.82", False, True),
        ("loss 0.4", "loss 0.6", False, False),
        ("loss 1.79", "gain 1.79", False, False),
        ("n 1,926", "n 1,927", False, True),
        ("n 12", "n 19", False, False),
        ("p 0.25", "p 0.2", False, False),  # another number of digits
        ("t 1.5e-03", "t 1.6e-03", True, True),
        ("t 1.5e-03", "t 2.5e-03", False, False),
        ("a\n...\nz 1", "a\nb\nc\nz 1", True, True),
        ("a\n...\nz 1", "a\nb\nc\nz 2", False, False),
        ("a\nb", "a\nb\nc", False, False),
        ("a\nb\nc", "a\nb", False, False),
        ("-0.50", "+0.50", False, False),
    ],
)
def test_what_a_page_says_is_compared_with_what_was_printed(run, said, printed, exact, about):
    assert run.agree(said, printed, about=False) is exact
    assert run.agree(said, printed, about=True) is about


def test_a_page_that_says_something_else_fails(run, tmp_path, capsys):
    page = tmp_path / "lesson.md"
    page.write_text("```python\nx = 2\nprint(x)\n```\n\n```text\n3\n```\n\n```sh\necho 4\n```\n\n```text\n4\n```\n")
    assert run.run_lesson(tmp_path, write=False) == 1
    assert "the page says\n3\nbut this was printed\n2" in capsys.readouterr().out
    run.run_lesson(tmp_path, write=True)
    assert "```text\n2\n```" in page.read_text()
    assert run.run_lesson(tmp_path, write=False) == 0
    page.write_text("```sh\nexit 3\n```\n")
    with pytest.raises(SystemExit, match="ended with 3"):
        run.run_lesson(tmp_path, write=False)
