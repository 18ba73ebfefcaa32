"""Running a sweep's file."""

import pytest
import yaml


@pytest.fixture
def sweep(folder, monkeypatch):
    """Run `lit-offrl sweep` on a file of two methods and given datasets; returns the exit code."""
    from lit_offrl.__main__ import main
    from lit_offrl.commands import sweep
    from lit_offrl.jobs import follow

    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(sweep, "check_options", lambda folders: None)  # the stand-in has none
    (folder / "a.yaml").write_text("model: {width: 1}\n")

    def run(*options, datasets=["plain"], seeds=(0, 1), **keys):
        content = {"methods": {"m": {"config": "a.yaml"}}, "datasets": datasets}
        content |= {"name": "grid", "seeds": list(seeds), **keys}
        (folder / "grid.yaml").write_text(yaml.safe_dump(content))
        return main(["sweep", "--config", "grid.yaml", *options])

    return run
