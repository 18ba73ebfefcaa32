"""Run notebooks from a clean kernel and keep their outputs.

python notebooks/execute.py                    all of them
python notebooks/execute.py 01_quickstart.ipynb
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).parent
_SECONDS = 600  # for one cell, on a loaded machine


def execute(path: Path, folder: Path) -> NotebookNode:
    """Run a notebook in ``folder`` and return it with outputs.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    programs = Path(sys.executable).parent  # lit-offrl is found also where no environment is active
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    NotebookClient(
        notebook,
        timeout=_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    # What depends on the machine alone would change with every run.
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def shrink(notebook: NotebookNode) -> None:
    """Redraw its pictures with 128 colours each, half of their size."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            picture = output.get("data", {}).get("image/png")
            if picture is None:
                continue
            small = io.BytesIO()
            image: Image.Image = Image.open(io.BytesIO(base64.b64decode(picture)))
            image = image.convert("RGB")
            image = image.quantize(128, kmeans=1, dither=Image.Dither.NONE)
            image.save(small, "PNG", optimize=True)
            output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()


def main(names: list[str]) -> None:
    """Run the named notebooks, or all, and write them back with outputs."""
    paths = [HERE / Path(name).name for name in names] or sorted(HERE.glob("*.ipynb"))
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        shrink(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
