"""The mutants apply, and the hunt tells a failed assertion from everything else; the hunt itself is `make mutants`."""

import ast
from pathlib import Path

import pytest

from tests.mutants import MUTANTS
from tests.mutants.hunt import ROOT, Mutant, failed_assertion, hunt

each = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.number} {mutant.defect}")


@each
def test_a_mutant_is_another_program(mutant: Mutant) -> None:
    """Its snippet occurs once, and the result is Python that says something else."""
    before, after = ast.parse((ROOT / mutant.path).read_text(encoding="utf-8")), ast.parse(mutant.source(ROOT))
    assert ast.dump(before) != ast.dump(after)


@each
def test_the_test_of_a_mutant_exists(mutant: Mutant) -> None:
    path, name = mutant.test.split("::")
    functions = [node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in [function.name for function in functions]


def test_every_number_has_a_mutant() -> None:
    assert sorted({mutant.number for mutant in MUTANTS}) == list(range(1, 21))


@pytest.mark.parametrize("text", ["", "6 * 7, 6 * 7"])
def test_a_snippet_that_does_not_occur_once_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(
        ValueError, match=r"mutant 1 \(wrong\) no longer applies: its snippet occurs [02] times in a.py"
    ):
        Mutant(1, "wrong", "a.py", "6 * 7", "6 * 8", "tests/test_answer.py::test_it_is_42").source(tmp_path)


@pytest.mark.parametrize(
    ("element", "found"),
    [
        ('<failure message="assert 1 == 2" />', "tests/a/test_b.py::test_c"),
        ('<failure message="AssertionError: Tensor-likes are not close!" />', "tests/a/test_b.py::test_c"),
        ('<failure message="Failed: DID NOT RAISE ValueError" />', "tests/a/test_b.py::test_c"),
        ('<failure message="Failed: Timeout (&gt;120.0s) from pytest-timeout." />', ""),
        ('<failure message="ZeroDivisionError: division by zero" />', ""),
        ('<error message="failed on setup with &quot;AssertionError: x&quot;" />', ""),
        ("", ""),
    ],
)
def test_only_a_failed_assertion_counts(element: str, found: str) -> None:
    case = f'<testcase classname="tests.a.test_b" name="test_c[d-e]">{element}</testcase>'
    assert failed_assertion(f"<testsuites><testsuite>{case}</testsuite></testsuites>") == found


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A house of one function, whose tests need no plugin."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    files = {
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-p no:cacheprovider --import-mode=importlib"\n',
        "lab/__init__.py": "",
        "lab/answer.py": "def answer():\n    return 6 * 7\n",
        "tests/test_answer.py": "from lab.answer import answer\n\n\ndef test_it_is_42():\n    assert answer() == 42\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def answering(new: str, test: str = "test_it_is_42") -> Mutant:
    return Mutant(1, f"answers {new}", "lab/answer.py", "6 * 7", new, f"tests/test_answer.py::{test}")


def test_a_hunt_tells_who_is_killed_and_who_is_not(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert hunt(tree, [answering("6 * 8"), answering("7 * 6"), answering("6 / 0"), answering("6 * (")]) == 1
    lines = capsys.readouterr().out.splitlines()
    fates = {line.split("  ")[1]: line.split("  ")[-1] for line in lines if line.startswith(" 1  ")}
    assert fates == {
        "answers 6 * 8": "tests/test_answer.py::test_it_is_42",
        "answers 7 * 6": "NOTHING (pytest: exit code 0)",
        "answers 6 / 0": "NOTHING (pytest: exit code 1)",
        "answers 6 * (": "NOTHING (pytest: exit code 4)",
    }
    assert lines[-1] == "1 of 4 mutants killed; without a mutant the tests pass"
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before


def test_a_hunt_is_a_success_when_all_are_killed(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hunt(tree, [answering("6 * 8")]) == 0
    assert capsys.readouterr().out.endswith("1 of 1 mutants killed; without a mutant the tests pass\n")


@pytest.mark.parametrize("test", ["test_it_is_42", "test_that_is_not_there"])
def test_tests_that_fail_without_a_mutant_prove_nothing(
    test: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "lab" / "answer.py").write_text("def answer():\n    return 6 * 7 + 1\n")
    assert hunt(tree, [answering("6 * 8", test)]) == 1
    assert capsys.readouterr().out.endswith("do not: nothing is proved\n")
