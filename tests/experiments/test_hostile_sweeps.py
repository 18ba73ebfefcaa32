"""Sweeps' files that nobody should trust, and those of methods of one's own."""

import sys
from pathlib import Path

import pytest
import yaml

from lit_offrl.__main__ import main

BC = ["bc", "data/adroit"]


@pytest.fixture
def sweep(folder, d4rl_file, monkeypatch):
    """Run a sweep's file of one method, with options, in this process; returns the exit code."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (folder / "evil_sweep.py").write_text("from pathlib import Path\nPath('canary').touch()\n")

    def run(*words, label="one", kind="config", **options):
        path = BC
        if kind == "pipeline":
            path = "stages.yaml"
            Path(path).write_text(yaml.safe_dump({"stages": {"clone": {"config": BC}}}))
        method = {kind: path, "options": options}
        content = {"methods": {label: method}, "datasets": {"d": str(d4rl_file)}, "seeds": [0]}
        Path("grid.yaml").write_text(yaml.safe_dump(content))
        return main(["sweep", "--config", "grid.yaml", *words])

    yield run
    assert not Path("canary").exists() and "evil_sweep" not in sys.modules


@pytest.mark.parametrize("label", ["..", ".", "", "...", "a/b", "/etc/x", "../x", "a\\b"])
def test_a_method_is_called_as_a_folder_can_be(sweep, label, capsys, folder):
    assert sweep(label=label) == 2
    said = capsys.readouterr().err
    assert f"grid.yaml: methods: {label!r} is given" in said and said.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == {"grid.yaml", "evil_sweep.py"}


@pytest.mark.parametrize("kind", ["config", "pipeline"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model", "evil_sweep.Evil"),
        ("model", {"class_path": "evil_sweep.Evil"}),
        ("data", {"class_path": "subprocess.run", "init_args": {"args": ["touch", "canary"]}}),
        ("data.init_args.view", {"class_path": "evil_sweep.Evil"}),
        ("trainer.logger", {"class_path": "evil_sweep.Evil"}),
        ("trainer.callbacks", ["evil_sweep.Evil"]),
        (
            "trainer.callbacks",
            {
                "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                "init_args": {"on_fit_start": "os.system"},
            },
        ),
    ],
)
def test_a_class_that_only_the_file_names_is_not_imported(sweep, option, value, kind, capsys):
    option = f"clone.{option}" if kind == "pipeline" else option
    code = sweep("--dry_run", kind=kind, **{option: value})
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1, said
    refusals = ("cannot be imported", "is no OfflineDataModule", "is no Callback", "is given by")
    assert any(text in said for text in refusals), said


def test_a_dry_run_finds_a_misspelt_option(sweep, capsys):
    assert sweep("--dry_run", **{"model.init_args.hiden": [8]}) == 2
    assert "BCModule has no option 'hiden'. Did you mean 'hidden'?" in capsys.readouterr().err
