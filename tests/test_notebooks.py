"""Each notebook from a clean kernel; what is committed is what they give."""

import re
from pathlib import Path

import nbformat
import pytest

from notebooks.execute import execute

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
FORBIDDEN = re.compile(r"(?<![\w.:/])/(tmp|home|root|opt|usr|work)/|Traceback|Warning\b")
LARGEST = 400_000  # bytes, so that they open at once
LENGTH = re.compile(r"(\b(?:max_steps|warmup_steps|val_check_interval|steps)(?:: |=| ))(\d\d+)0\b")


def kinds(notebook):
    """The types of each code cell's outputs."""
    return [
        [sorted(output.get("data", {output.get("name"): ""})) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def texts(notebook):
    """All that a reader sees as text in outputs."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            yield output.get("text") or output.get("data", {}).get("text/plain") or ""


def assert_clean(notebook):
    for text in texts(notebook):
        assert not FORBIDDEN.search(text), text


def test_there_are_five():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in kind for cell in kinds(notebook) for kind in cell)
    assert path.stat().st_size < LARGEST
    assert_clean(notebook)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_clean_kernel_gives_the_same(path, tmp_path, monkeypatch):
    """All cells run, with a tenth of the training's steps; execute.py runs them with all."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no settings of the user's
    notebook = nbformat.read(path, as_version=4)
    expected, shortened = kinds(notebook), 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source, number = LENGTH.subn(r"\1\2", cell.source)
            shortened += number
    assert shortened
    nbformat.write(notebook, tmp_path / path.name)
    executed = execute(tmp_path / path.name, tmp_path)
    assert_clean(executed)
    assert kinds(executed) == expected
