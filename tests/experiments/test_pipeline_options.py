"""A mistake in the last stage is found before the first begins."""

from pathlib import Path

import pytest
import yaml


@pytest.mark.parametrize(
    ("option", "policy", "message"),
    [
        (
            "model.init_args.omgea",
            {},
            "actor: ACDModule has no option 'omgea'. Did you mean 'omega'?",
        ),
        ("trainer.max_step", {}, "actor: there is no option '--trainer.max_step'. Did you mean"),
        (
            "model.init_args.omega",
            {"policy.act_mod": "acd_f"},
            "best: The policy of ACDModule has no option 'act_mod' (it has",
        ),
        (
            "model.init_args.omega",
            {"policy.num_samples": "no"},
            "best: The option 'num_samples' of the policy of ACDModule is 'no': give a whole",
        ),
        (
            "model.init_args.omega",
            {"episodes": "ten"},
            "best: argument --episodes: invalid positive integer value: 'ten'.",
        ),
        (
            "model.init_args.omega",
            {"env": "lit_offrl/maze2d-umaze-v9"},
            "best: There is no environment 'lit_offrl/maze2d-umaze-v9'. Did you mean",
        ),
    ],
)
def test_options_are_parsed_before_anything_begins(
    folder, d4rl_file, capsys, option, policy, message
):
    from lit_offrl.__main__ import main

    content = {
        "dataset": str(d4rl_file),
        "stages": {
            "critic": {"config": ["iql", "data/maze2d"]},
            "actor": {
                "config": ["acd", "data/maze2d"],
                "options": {"model.init_args.labels": "precomputed", option: 1},
                "checkpoints": {"model.init_args.critic": "critic"},
            },
        },
        "evaluations": {"best": policy},
    }
    (folder / "acd.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["pipeline", "--config", "acd.yaml"]) == 2
    err = capsys.readouterr().err
    assert f"lit-offrl: error: {message}" in err and err.count("\n") == 1
    assert not Path("pipelines").exists() and not Path("mlflow.db").exists()
