"""Writing and running a pipeline's file of two stages, of which the second takes the first's."""

import pytest
import yaml


@pytest.fixture
def write(folder):
    """Write `two.yaml` with changes; None takes a key out. Returns the path."""

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
def pipeline(write, stub, monkeypatch):
    """Run `lit-offrl pipeline` on `two.yaml` by the stand-in; returns the exit code."""
    from lit_offrl.__main__ import main
    from lit_offrl.commands import pipeline
    from lit_offrl.jobs import follow

    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(pipeline, "check_options", lambda stages: None)  # the stand-in has none

    def run(*options, **changes):
        return main(["pipeline", "--config", str(write(**changes)), *options])

    return run
