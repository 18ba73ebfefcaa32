"""LDCQ's stages, the second killed half-way, end with the weights of an unbroken pipeline."""

import os
import signal
import threading
import time

import pytest
import yaml

from lit_offrl.experiments.job import State, Tracking
from lit_offrl.experiments.pipeline import read_pipeline
from lit_offrl.experiments.process import Children
from lit_offrl.experiments.run import Choices, Runner

OPTIONS = {
    "data.init_args.batch_size": 16,
    "data.init_args.validation_fraction": 0.2,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
    "evaluation.episodes": 0,
    "checkpoint.every_n_train_steps": 10,
    "model.init_args.learning_rate": 1e-3,
}
SMALL = {"model.init_args.width": 8, "trainer.max_steps": 10}


@pytest.mark.slow
def test_a_killed_pipeline_ends_as_an_unbroken_one(folder, d4rl_file, here, same_state):
    for name in ("1", "2", "3"):
        content = {"model": f"LDCQStage{name}Module", "data": "PyBulletDataModule"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    content = {
        "dataset": str(d4rl_file),
        "options": OPTIONS,
        "stages": {
            "vae": {"config": "1.yaml", "options": {**SMALL, "model.init_args.horizon": 5}},
            "prior": {
                "config": "2.yaml",
                "options": {**SMALL, "model.init_args.widths": [8, 4, 8], "trainer.max_steps": 100},
                "checkpoints": {"model.init_args.stage1": "vae"},
            },
            "critics": {
                "config": "3.yaml",
                "options": {"model.init_args.num_latents": 3, "trainer.max_steps": 20},
                "checkpoints": {"model.init_args.stage2": "prior"},
            },
        },
        "evaluations": {},
    }
    (folder / "ldcq.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    pipeline = read_pipeline([folder / "ldcq.yaml"])
    whole = pipeline.jobs(folder / "whole", Tracking(None, "ldcq"), 3)
    assert Runner(Choices(), here).run_through(whole[-1]) == ""

    broken = pipeline.jobs(folder / "broken", Tracking(None, "ldcq"), 3)
    vae, prior, critics = broken
    assert Runner(Choices(), here).run(vae) == ""
    children, results = Children(), []
    thread = threading.Thread(target=lambda: results.append(Runner(Choices(), children).run(prior)))
    thread.start()
    while not prior.checkpoint.exists():
        assert thread.is_alive(), prior.log.read_text()
        time.sleep(0.005)
    os.kill(children._running[0].pid, signal.SIGKILL)
    thread.join()
    assert results == ["fit was killed by SIGKILL"] and prior.state() == State.CUT
    assert critics.state() == State.NEW

    assert Runner(Choices(), here).run_through(critics) == ""
    assert (len(vae.times.intervals()), len(prior.times.intervals())) == (1, 2)
    for one, other in zip(whole, broken, strict=True):
        same_state(one.checkpoint, other.checkpoint)
    assert [step.state() for step in broken] == [State.DONE] * 3
