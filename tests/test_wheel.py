"""What a wheel holds: configs, sweeps and pages, which are found by name without a clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

CLONE = Path(__file__).parent.parent
BUILD = "from setuptools.build_meta import build_wheel; build_wheel('wheel')"


def test_configs_sweeps_and_pages_come_with_the_wheel(folder):
    for name in ("lit_offrl", "configs", "sweeps", "docs"):
        leave_out = shutil.ignore_patterns("__pycache__", "*.hdf5", "images")
        shutil.copytree(CLONE / name, folder / "clone" / name, symlinks=True, ignore=leave_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CLONE / name, folder / "clone")
    subprocess.run([sys.executable, "-c", BUILD], cwd="clone", check=True, capture_output=True)
    with zipfile.ZipFile(next(Path("clone", "wheel").glob("*.whl"))) as wheel:
        wheel.extractall("site")
    shutil.rmtree("clone")
    names = {
        str(each.relative_to(CLONE))
        for folder in ("configs", "sweeps")
        for each in (CLONE / folder).rglob("*.yaml")
    }
    there = {str(each.relative_to("site/lit_offrl")) for each in Path("site").rglob("*.yaml")}
    assert {*names, "experiments/claims.yaml"} == there
    pages = {str(page.relative_to(CLONE)) for page in (CLONE / "docs").rglob("*.md")}
    kept = [each for each in Path("site/lit_offrl/docs").rglob("*") if each.is_file()]
    assert {str(each.relative_to("site/lit_offrl")) for each in kept} == pages
    assert shown("configs", "show", "data/antmaze") == read("configs/data/antmaze.yaml")
    assert shown("docs", "methods/acd") == read("docs/methods/acd.md")


def shown(*argv):
    """Return what a command of the library in the folder ``site`` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "lit_offrl", *argv],
        env={**os.environ, "PYTHONPATH": "site"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def read(name):
    return (CLONE / name).read_text()
