"""lit-offrl configs: list, show, copy."""

import subprocess
import sys
from pathlib import Path

import pytest

from lit_offrl.__main__ import main
from lit_offrl.common.configs import FOLDER


def test_all_names_are_listed_with_what_they_are(capsys):
    assert main(["configs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len([*FOLDER.rglob("*.yaml")])
    listed = dict(line.split(maxsplit=1) for line in lines)
    assert listed["data/antmaze"].startswith("D4RL's AntMaze") and "trainer/gpu" in listed
    assert main(["configs", "list", "data/"]) == 0
    assert all(line.startswith("data/") for line in capsys.readouterr().out.splitlines())


def test_a_config_is_shown_as_it_is(capsys):
    assert main(["configs", "show", "data/antmaze"]) == 0
    assert capsys.readouterr().out == (FOLDER / "data" / "antmaze.yaml").read_text()


def test_a_copy_never_replaces_a_file_unasked(folder, capsys):
    assert main(["configs", "copy", "data/antmaze"]) == 0
    copy, source = Path("antmaze.yaml"), FOLDER / "data" / "antmaze.yaml"
    assert copy.read_bytes() == source.read_bytes()
    copy.write_text("mine")
    assert main(["configs", "copy", "data/antmaze"]) == 2
    assert (
        "antmaze.yaml: is there already" in capsys.readouterr().err and copy.read_text() == "mine"
    )
    assert main(["configs", "copy", "data/antmaze", "--force"]) == 0
    assert copy.read_bytes() == source.read_bytes()
    assert main(["configs", "copy", "iql", "no/such/folder.yaml"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["configs", "copy", "iql", str(FOLDER), "--force"]) == 2
    assert "the library's own file" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["show", "copy"])
@pytest.mark.parametrize("name", ["iqll", "../pyproject", "/etc/passwd"])
def test_what_is_no_config_is_refused(folder, capsys, verb, name):
    assert main(["configs", verb, name]) == 2
    said = capsys.readouterr().err
    assert f"there is no config '{name}'." in said and said.count("\n") == 1
    assert ("Did you mean 'iql'?" in said) == (name == "iqll")


def test_torch_is_not_imported(folder):
    code = "import sys; from lit_offrl.__main__ import main; main(['configs', 'list']);"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} assert 'torch' not in sys.modules"], capture_output=True
    )
    assert done.returncode == 0, done.stderr
