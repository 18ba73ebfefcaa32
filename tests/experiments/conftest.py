"""Running the files of sweeps and pipelines."""

import pytest
import yaml


@pytest.fixture
def quick(monkeypatch):
    """Look at jobs often; leave options unchecked and MLflow alone: the stand-in has neither."""
    from lit_offrl.commands import experiments
    from lit_offrl.experiments import run

    monkeypatch.setattr(run, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(experiments, "check_jobs", lambda cells, hint, make: None)
    monkeypatch.setattr(experiments, "begin_parent", lambda experiment, kind, command: None)


@pytest.fixture
def sweep(folder, quick):
    """Run `lit-offrl sweep` on a file of one method and given datasets; returns the exit code."""
    from lit_offrl.__main__ import main

    (folder / "a.yaml").write_text("model: {width: 1}\n")

    def run(*options, datasets=["plain"], seeds=(0, 1), **keys):
        content = {"methods": {"m": {"config": "a.yaml"}}, "datasets": datasets}
        content |= {"name": "grid", "seeds": list(seeds), **keys}
        (folder / "grid.yaml").write_text(yaml.safe_dump(content))
        return main(["sweep", "--config", "grid.yaml", *options])

    return run


@pytest.fixture
def write(folder):
    """Write `two.yaml`, a pipeline of two stages of which the second takes the first's checkpoint.

    Changes replace keys; None takes one out. Returns the path.
    """

    def build(**changes):
        (folder / "a.yaml").write_text("model:\n  width: 1\n")
        (folder / "b.yaml").write_text("trainer: {max_steps: 3}\n")
        content = {
            "dataset": "minari:data",
            "stages": {
                "first": {"config": "a.yaml"},
                "second": {"config": ["a.yaml"], "checkpoints": {"model.before": "first"}},
            },
            "evaluate": {"episodes": 3},
            "evaluations": {"one": {"policy.x": 1}, "other": {"stage": "first"}},
        }
        content = {k: v for k, v in (content | changes).items() if v is not None}
        path = folder / "two.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return build


@pytest.fixture
def pipeline(write, stub, quick):
    """Run `lit-offrl pipeline` on `two.yaml` by the stand-in; returns the exit code."""
    from lit_offrl.__main__ import main

    def run(*options, **changes):
        return main(["pipeline", "--config", str(write(**changes)), *options])

    return run
