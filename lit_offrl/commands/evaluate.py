"""``lit-offrl evaluate``: roll out a checkpoint's policy, score it, and record how."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from lit_offrl.commands.options import parse
from lit_offrl.commands.parsing import discount, positive, seed_number
from lit_offrl.common.device import CPU, device
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256, is_json_with, require_replaceable
from lit_offrl.common.user_code import command_line
from lit_offrl.evaluation.envs import name_env
from lit_offrl.evaluation.protocol import evaluated
from lit_offrl.tracking.provenance import code_tags, description
from lit_offrl.tracking.references import REFERENCE, label
from lit_offrl.tracking.results import OwnRun, log_to_origin
from lit_offrl.tracking.store import redacted

if TYPE_CHECKING:
    from lit_offrl.evaluation.record import EvaluationRecord
    from lit_offrl.modules.base import OfflineModule
    from lit_offrl.tracking.outbox import LoggedModel

_POLICY = "--policy."
_OF_RECORDS = ("method", "env_id", "episodes", "returns", "lengths")


def main(argv: Sequence[str]) -> int:
    """Evaluate a checkpoint, print a table and write the record.

    Returns:
        0, or 1 where ``--mlflow`` asked for what MLflow then did not take.
    """
    options, policy_options = read_arguments(argv)
    if options.run_tags and options.run_name is None:
        raise ConfigError("--run_tags are of a run of its own: give it a --run_name.")
    scored = _exported(options) if options.policy else _checkpoint(options, policy_options)
    output = options.output or _default_output(options, scored)
    is_record = partial(is_json_with, names=_OF_RECORDS)
    others = [scored.file, options.video]
    require_replaceable(output, "evaluation record", is_record, others)
    if options.video is not None:
        require_replaceable(options.video, "mp4", _is_mp4, [scored.file])
    record = scored.evaluate(
        episodes=options.episodes,
        seed=options.seed,
        num_envs=options.num_envs,
        env_id=options.env,
        max_episode_steps=options.max_episode_steps,
        gamma=options.gamma,
        record_video=options.video,
        video_size=options.video_size,
        progress=sys.stderr.isatty(),
        command=redacted(command_line(["evaluate", *argv])),
    )
    Console().print(record.table())
    path = record.save(output)
    print(f"record: {path}")
    if options.video is not None:
        print(f"video: {options.video}")
    if options.mlflow is False:
        return 0
    files = [path] if options.video is None else [path, options.video]
    run = None
    if options.run_name is not None:
        tags = {**code_tags(record.command or ""), **options.run_tags}
        run = OwnRun(options.run_name, tags)
    if scored.origin is None and (options.mlflow or run is not None):
        print(f"lit-offrl evaluate: {scored.file} came from no MLflow run: nothing is logged.")
    with TemporaryDirectory() as scratch:
        logged = log_to_origin(
            scored.origin,
            "evaluate",
            record.metrics(),
            files,
            step=record.training_steps or 0,
            tracking_uri=options.tracking_uri,
            run=run,
            note=description(_run_facts(record), evaluated(record)),
            model=_model(options, scored, record, Path(scratch) / "model"),
        )
    return int(options.mlflow is True and not logged)


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """What is scored: its file and module, environment, policy options, MLflow run, and how."""

    file: Path
    env_id: str | None
    policy_options: Mapping[str, Any]
    origin: dict[str, str] | None
    evaluate: Callable[..., EvaluationRecord]
    module: OfflineModule | None = None


def _checkpoint(options: EvaluateOptions, policy_options: dict[str, Any]) -> _Scored:
    from lit_offrl.evaluation.evaluate import evaluate_module  # torch and Lightning: seconds
    from lit_offrl.modules.checkpoints import (
        checkpoint_rule,
        load_module,
        mlflow_origin,
        read_checkpoint,
    )

    path = options.ckpt_path
    assert path is not None  # read_arguments saw to it
    module, saved = load_module(path, options.device), read_checkpoint(path)
    return _Scored(
        file=path,
        env_id=module.spec.env_id if module.spec else None,
        policy_options=policy_options,
        origin=mlflow_origin(path),
        module=module,
        evaluate=lambda **how: evaluate_module(
            module,
            policy_options=policy_options,
            checkpoint=path,
            checkpoint_rule=checkpoint_rule(path, saved),
            training_steps=saved.get("global_step"),
            **how,
        ),
    )


def _exported(options: EvaluateOptions) -> _Scored:
    from lit_offrl.evaluation.evaluate import evaluate_exported
    from lit_offrl.export import load_onnx

    path = options.policy
    assert path is not None
    policy = load_onnx(path, options.seed)
    facts = policy.facts
    return _Scored(
        file=path,
        env_id=facts.spec["env_id"],
        policy_options=facts.policy_options,
        origin=None if facts.mlflow is None else dict(facts.mlflow),
        evaluate=lambda **how: evaluate_exported(policy, file=path, **how),
    )


def read_arguments(argv: Sequence[str]) -> tuple[EvaluateOptions, dict[str, Any]]:
    """Return the command's options, and those of the policy, which are not looked at.

    Raises:
        LitOffRLError: one that the command would refuse before there is a checkpoint.
    """
    rest, policy_options = split_policy_options(argv)
    options = parse(
        EvaluateOptions,
        rest,
        "evaluate",
        epilog="--policy.OPTION VALUE sets an option of the module's policy.",
    )
    if (options.ckpt_path is None) == (options.policy is None):
        raise ConfigError(
            "evaluate takes one of --ckpt_path, a checkpoint, and --policy, an exported policy."
        )
    if options.policy is not None and policy_options:
        name = next(iter(policy_options))
        raise ConfigError(
            f"--policy.{name} is an option of a checkpoint's policy: an exported one has the"
            " options that it was exported with; give them to 'lit-offrl export'."
        )
    if options.policy is not None and options.device != CPU:
        raise ConfigError("--device is for checkpoints: an exported policy runs on the CPU.")
    if options.env is not None:
        name_env(options.env)
    return options, policy_options


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Roll out a checkpoint's policy, score it, and record how.

    The same command gives the same returns each time.

    Args:
        ckpt_path: Checkpoint of 'fit' to evaluate: a path, runs:/ID, models:/NAME@ALIAS or
            hub:ORG/NAME.
        policy: Policy that 'export' has written, an .onnx, to evaluate through onnxruntime in the
            place of a checkpoint.
        episodes: Number of episodes, at least 1.
        seed: Seed that each episode's own seed follows from.
        env: A gymnasium id, or MODULE:ID for one of your own. (default: that of the data)
        num_envs: Number of environments that are stepped together, at least 1.
        max_episode_steps: Step limit of episodes. (default: the environment's own, else that of the
            data)
        gamma: Discount factor in [0, 1] of returns that are recorded in addition to the
            undiscounted ones.
        video: Video to make of the first episode, an .mp4.
        video_size: Size of the video in pixels, such as 640x480.
        output: Path of the record. (default: evaluations/RUN-CHECKPOINT-ENV-seedSEED.json, with -2
            and so on where that is of another checkpoint or policy option)
        device: Device, such as cpu, cuda or cuda:1.
        mlflow: Whether to log to the MLflow run that the checkpoint came from. By default it is
            tried; with --mlflow it is an error if that fails.
        log_model: Whether that run gets the evaluated policy as a model, which MLflow compares,
            registers and serves; it takes some seconds.
        tracking_uri: Address of the MLflow store; without it, that of $MLFLOW_TRACKING_URI, else
            sqlite:///mlflow.db.
        run_name: Name of a new run to log to instead of the checkpoint's own, for a second way to
            act with the same weights.
        run_tags: Tags of that run, a JSON mapping by name.
    """

    ckpt_path: Annotated[Path | None, REFERENCE] = None
    policy: Path | None = None
    episodes: Annotated[int, positive] = 100
    seed: Annotated[int, seed_number] = 0
    env: str | None = None
    num_envs: Annotated[int, positive] = 8
    max_episode_steps: Annotated[int | None, positive] = None
    gamma: Annotated[float | None, discount] = None
    video: Annotated[Path | None, _video] = None
    video_size: Annotated[tuple[int, int] | None, _size] = None
    output: Path | None = None
    device: Annotated[str, device] = CPU
    mlflow: bool | None = None
    log_model: bool = False
    tracking_uri: str | None = None
    run_name: str | None = None
    run_tags: Annotated[dict[str, str], _tags] = field(default_factory=dict)


def split_policy_options(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take ``--policy.NAME value`` and ``--policy.NAME=value`` out of the arguments.

    Values are read as JSON where they can be (numbers, true, null, lists), else as text.

    Raises:
        ConfigError: an option without a value.
    """
    rest, options = [], {}
    words = iter(argv)
    for word in words:
        if not word.startswith(_POLICY):
            rest.append(word)
            continue
        name, given, text = word.removeprefix(_POLICY).partition("=")
        if not given:
            text = next(words, "")
            if not text or text.startswith("--"):
                raise ConfigError(f"{_POLICY}{name} needs a value: {_POLICY}{name} VALUE.")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return rest, options


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    if min(width, height) < 2 or width % 2 or height % 2:
        raise ValueError  # the codec halves the colours' resolution
    return width, height


def _tags(text: str) -> dict[str, str]:
    tags = json.loads(text)
    if not isinstance(tags, dict):
        raise ValueError
    return {name: str(value) for name, value in tags.items()}


def _video(text: str) -> Path:
    if not text.endswith(".mp4"):
        raise ValueError
    return Path(text)


_video.__name__ = "name of an .mp4"
_tags.__name__ = "JSON mapping"
_size.__name__ = "even WIDTHxHEIGHT"  # argparse names the type in its message


def _is_mp4(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(8)[4:] == b"ftyp"


def _default_output(options: EvaluateOptions, scored: _Scored) -> Path:
    """Name the record, so that only one of the same checkpoint and policy options is replaced."""
    checkpoint = scored.file.resolve()
    env_id = options.env or scored.env_id or "env"
    parts = (label(checkpoint), checkpoint.stem, re.sub("[/:]", "-", env_id))
    name = "-".join([*parts, f"seed{options.seed}"])
    own = {
        "checkpoint_sha256": file_sha256(checkpoint),
        "policy_options": dict(scored.policy_options),
    }
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    paths = (Path("evaluations") / f"{each}.json" for each in names)
    return next(path for path in paths if not path.exists() or _facts(path, own) == own)


def _model(
    options: EvaluateOptions, scored: _Scored, record: EvaluationRecord, folder: Path
) -> LoggedModel | None:
    """Return the model that MLflow's run gets; None where it is to get none."""
    if not options.log_model or scored.origin is None or scored.module is None:
        return None
    from lit_offrl.tracking.models import logged_model

    metrics, acting = record.metrics(), record.policy_options
    return logged_model(scored.module, scored.file, folder, metrics, acting)


def _run_facts(record: EvaluationRecord) -> dict[str, Any]:
    facts = {
        "method": record.method,
        "dataset": record.dataset,
        "dataset_sha256": record.dataset_sha256,
        "max_steps": record.training_steps,
        "seed": record.training_seed,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _facts(path: Path, names: Iterable[str]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        return {name: record.get(name) for name in names}
    except (OSError, ValueError, AttributeError):
        return {}
