"""``lit-offrl online --from CHECKPOINT``: the same networks go on, with steps of their own.

    checkpoint ─▶ score ─▶ own steps ─▶ batches of offline rows and own ones ─▶ … ─▶ score
                              ▲                       │
                              └── the policy as it is ┘

Weights, optimiser, averages and the normaliser are those of the checkpoint; a fit of Lightning's
drives it all, so that it stops and goes on as any fit does.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lit_offrl.collecting.base import summary_of_episodes
from lit_offrl.collecting.pace import Pace
from lit_offrl.collecting.rounds import FIT, STATE, require_same
from lit_offrl.commands.online_base import CURVE, OURS, Online, fitted, grouped, print_curve
from lit_offrl.commands.parsing import positive
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256, write_whole
from lit_offrl.common.ranges import require_fields
from lit_offrl.evaluation.envs import box, make_env, name_env, step_limit
from lit_offrl.evaluation.record import package_versions
from lit_offrl.tracking.references import Checkpoint

if TYPE_CHECKING:
    from lit_offrl.datasets.replay import Replay
    from lit_offrl.datasets.schema import DatasetSpec
    from lit_offrl.evaluation.record import EvaluationRecord

_KEPT = ("env", "noise", "hold", "seed", "max_episode_steps", "episodes", "evaluation_seed",
         "evaluate_every", "offline_ratio", "updates_per_step", "steps_at_once", "initial_steps",
         "initial_actions")  # fmt: skip
_OURS = {
    **OURS,
    "--ckpt_path": "give --from",
    "--checkpoint.dirpath": "give --output",
    "--trainer.max_steps": "it follows from --steps and --updates_per_step",
    "--seed_everything": "the checkpoint's goes on; --seed is that of own steps",
    "--evaluation.episodes": "give --episodes",
    "--evaluation.every_n_steps": "give --evaluate_every",
    "--evaluation.seed": "give --evaluation_seed",
    "--evaluation.num_envs": "give --num_envs",
    "--evaluation.max_episode_steps": "give --max_episode_steps",
}


@dataclass(frozen=True, kw_only=True)
class OnlineFrom(Online):
    """Go on training a checkpoint on offline rows and on steps that it takes itself.

    Args:
        checkpoint: Checkpoint of fit whose networks, optimiser and averages go on.
        steps: Number of online steps, those in the environment, at least 1.
        offline_ratio: Share of a batch's rows, 0 to 1, that are the data's; the others are drawn
            from all online steps so far.
        updates_per_step: Number of optimiser steps for each online step, above 0.
        steps_at_once: Number of online steps in a row, at least 1; their optimiser steps follow.
        initial_steps: Number of online steps, at least 0, before the first optimiser step.
        initial_actions: Source of the actions of the initial steps: the policy, or random actions.
        evaluate_every: Number of online steps between two scores. (default: only before and after)
    """

    noise: Annotated[float, "[0, inf)"] = 0.1
    checkpoint: Checkpoint
    steps: Annotated[int, positive] = 20_000
    offline_ratio: Annotated[float, "[0, 1]"] = 0.5
    updates_per_step: Annotated[float, "(0, inf)"] = 1.0
    steps_at_once: Annotated[int, positive] = 1
    initial_steps: Annotated[int, "[0, inf)"] = 0
    initial_actions: Literal["policy", "random"] = "policy"
    evaluate_every: Annotated[int | None, positive] = None
    scores: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        require_fields(self)
        self.require_free(_OURS)
        if self.env is not None:
            name_env(self.env)
        self._pace(0)
        if self.evaluate_every is not None:
            self._pace(0).require_blocks("evaluate_every", self.evaluate_every)

    def _pace(self, begun: int) -> Pace:
        return Pace(
            steps=self.steps,
            initial=self.initial_steps,
            block=self.steps_at_once,
            ratio=self.updates_per_step,
            begun=begun,
        )

    @cached_property
    def _settings(self) -> dict[str, Any]:
        given = {f"--{name}": getattr(self, name) for name in _KEPT}
        given["--from"] = f"{self.checkpoint} (sha256 {file_sha256(self.checkpoint)[:8]})"
        return given | {FIT: grouped(self.fit)}

    def run(self) -> int:
        """Run what is missing; return 0, or the exit code of a fit that was stopped."""
        from lit_offrl.modules.checkpoints import read_checkpoint

        begun = read_checkpoint(self.checkpoint).get("global_step", 0)
        pace, last = self._pace(begun), self.output / "last.ckpt"
        done = begun
        if last.is_file():
            self._take_up()
            done = read_checkpoint(last)["global_step"]
        if done > pace.last:
            raise ConfigError(
                f"{self.output} has {pace.own(done):,} own steps already, and steps is "
                f"{self.steps:,}: give at least that many, or another --output."
            )
        if done < pace.last:
            code = self._fit(pace, last)
            if code:
                print("lit-offrl online: the same command goes on.", file=sys.stderr)
                return code
            done = read_checkpoint(last)["global_step"]
            if done < pace.last:
                print(f"lit-offrl online: ended after {pace.own(done):,} own steps of "
                      f"{self.steps:,}.")  # fmt: skip
                return 0
        if not any(one["environment_steps"] == self.steps for one in self.scores):
            self._end(last)
        print_curve(self.output, self.scores, f"{self.steps:,} own steps")
        print(f"curve: {self.output / CURVE}; own steps: {self.output / 'replay.hdf5'}; policy: "
              f"{last}")  # fmt: skip
        return 0

    def _take_up(self) -> None:
        """Take the scores of the folder's run so far, which was begun with the same options."""
        path = self.output / STATE
        try:
            state = json.loads(path.read_text())
            before, scores = dict(state["options"]), list(state["scores"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: is not of a run of own steps: give another --output."
            ) from error
        require_same(self.output, before, self._settings)
        self.scores.extend(scores)

    def _fit(self, pace: Pace, last: Path) -> int:
        """Fit, going on from the run's own last checkpoint where there is one."""
        from lit_offrl.callbacks.own_steps import OwnStepsOptions
        from lit_offrl.cli.online import online_cli

        begins = not last.is_file()
        options = OwnStepsOptions(
            pace=pace,
            ratio=self.offline_ratio,
            noise=self.noise,
            hold=self.hold,
            initial_actions=self.initial_actions,
            seed=self.seed,
            max_episode_steps=self.max_episode_steps,
            begins=begins,
        )
        every = None
        if self.evaluate_every is not None:
            every = self.evaluate_every // pace.block * pace.updates
        given = {
            "ckpt_path": self.checkpoint if begins else last,
            "checkpoint.dirpath": self.output,
            "trainer.max_steps": pace.last,
            "trainer.devices": 1,
            "trainer.num_nodes": 1,
            "evaluation.episodes": self.episodes,
            "evaluation.every_n_steps": every,
            "evaluation.seed": self.evaluation_seed,
            "evaluation.num_envs": self.num_envs,
            "evaluation.max_episode_steps": self.max_episode_steps,
            "evaluation.bc_steps": 0,
        }
        if self.env is not None:
            given["data.init_args.env_id"] = self.env
        argv = ["fit", *self.fit]
        for name, value in given.items():
            argv += [f"--{name}", "null" if value is None else str(value)]
        return fitted(argv, online_cli(options, self._hear), last)

    def _hear(self, record: EvaluationRecord, own: int, replay: Replay) -> None:
        """Add a score to the curve, where a killed run may have had it and later ones already."""
        figures = record.summary()
        before = [one for one in self.scores if one["environment_steps"] < own]
        since = before[-1]["environment_steps"] if before else 0
        one: dict[str, Any] = {"environment_steps": own, "training_steps": record.training_steps}
        if len(earned := replay.returns(since, own)):
            one |= {
                "collected_return_mean": float(earned.mean()),
                "collected_episodes": len(earned),
            }
        one |= {key: figures[key] for key in figures if not key.startswith("clipped")}
        self.scores[:] = [*before, one]
        self._write()

    def _write(self) -> None:
        state = {"options": self._settings, "scores": self.scores}
        write_whole(self.output / STATE, json.dumps(state, indent=2) + "\n")
        names = list(dict.fromkeys(name for one in self.scores for name in one))
        lines = [",".join(str(one.get(name, "")) for name in names) for one in self.scores]
        write_whole(self.output / CURVE, "\n".join([",".join(names), *lines]) + "\n")

    def _end(self, last: Path) -> None:
        """Write the own steps as a dataset, and score the last policy."""
        from lit_offrl.datasets.replay import ROWS_FILE, Replay
        from lit_offrl.datasets.schema import DatasetSpec
        from lit_offrl.evaluation.evaluate import environment_of
        from lit_offrl.modules.base import CHECKPOINT_KEY
        from lit_offrl.modules.checkpoints import read_checkpoint

        checkpoint = read_checkpoint(last)
        spec = DatasetSpec.from_dict(checkpoint[CHECKPOINT_KEY]["spec"])
        spec, limit = environment_of(spec, self.env, self.max_episode_steps)
        replay = Replay(self.steps, spec.observation_dim, spec.action_dim)
        replay.load(self.output / ROWS_FILE, self.steps)
        self._write_dataset(replay, spec, limit)
        record = self._evaluate(last, checkpoint["global_step"])
        record.save(self.output / "evaluation.json")
        self._hear(record, self.steps, replay)
        self._draw(self.scores)
        self._log_to_mlflow(self.output, record, self.scores)

    def _write_dataset(self, replay: Replay, spec: DatasetSpec, limit: int | None) -> None:
        from lit_offrl.datasets.hdf5 import write_hdf5

        assert spec.env_id is not None  # environment_of saw to it
        with contextlib.closing(make_env(spec.env_id, max_episode_steps=limit)) as env:
            space, limit = box(env.action_space), step_limit(env)
        columns, cut = replay.rows(), replay.begun < replay.length
        options = {name.removeprefix("--"): value for name, value in self._settings.items()}
        attributes = {
            **options,
            "format": "d4rl",
            "env": None,  # which is the next
            "env_id": spec.env_id,
            "max_episode_steps": limit,
            "action_low": space.low,
            "action_high": space.high,
            "kind": "online",
            "algorithm": "a policy in training",
            "last_episode_cut": cut,
            **summary_of_episodes(columns, cut),
            "versions": json.dumps(package_versions()),
        }
        write_hdf5(self.output / "replay.hdf5", columns, attributes)
