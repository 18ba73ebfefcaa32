"""The Trainer's verbs: fit, validate, test, predict."""

from __future__ import annotations

import enum
import os
import re
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lit_offrl.datamodules
import lit_offrl.modules  # so that a config may say `class_path: DVFModule`
from lit_offrl import callbacks as own
from lit_offrl.callbacks.checkpoints import run_name
from lit_offrl.callbacks.interruption import leave_signals_to_us
from lit_offrl.callbacks.lookup import settings
from lit_offrl.callbacks.mlflow_run import go_on_with, mlflow_loggers
from lit_offrl.callbacks.progress import StepProgress
from lit_offrl.callbacks.record import AS_PARSED
from lit_offrl.cli.argv import Argv, with_checkpoint
from lit_offrl.cli.checkpoint import ResumeFrom
from lit_offrl.cli.errors import OneLineArgumentParser, find_lightnings, find_ours
from lit_offrl.cli.folders import Folders
from lit_offrl.cli.help import adapt_help
from lit_offrl.cli.precision import allow_auto, resolve_auto
from lit_offrl.cli.trainer import ALWAYS_THERE, require_cores, require_trainer_options
from lit_offrl.common import signals
from lit_offrl.common.configs import expand_argv, method_of
from lit_offrl.common.errors import ConfigError, LitOffRLError, reason
from lit_offrl.common.quiet import quiet, say
from lit_offrl.common.ranges import SEEDS, require_in
from lit_offrl.common.user_code import command_line, import_named
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.envs import name_env
from lit_offrl.modules.checkpoints import mlflow_runs
from lit_offrl.tracking.references import checkpoint_path, is_reference

_LOGGER = f"{own.MLflowRun.__module__}.{own.MLflowRun.__name__}"

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Lightning's Timer has a member of an enumeration as the default of an option that is text.
yaml.SafeDumper.add_multi_representer(
    enum.Enum, lambda dumper, one: dumper.represent_data(one.value)
)

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_steps": 100_000,
    "val_check_interval": 5000,
    "check_val_every_n_epoch": None,  # steps count, epochs do not
    "log_every_n_steps": 100,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # our loaders shard their rows themselves
}


class OfflineCLI(LightningCLI):
    """LightningCLI for one verb.

    Differs from Lightning's in this: dimensions and seeds are linked; a checkpoint's options are
    overridden by those given, never the other way round; what a run needs is there whatever a
    config says about ``trainer.callbacks``; a mistake is one line.
    """

    evaluation: type[own.EvaluationDuringFit] = own.EvaluationDuringFit
    """What scores the policy in a fit."""
    same_run = True
    """Whether a fit from a checkpoint goes on with that one's run, not only with its state."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.verb = argv[0]
        command = command_line(argv)
        argv = expand_argv(argv)
        self._given = Argv(argv)
        for module, given in self._given.modules():
            import_named(module, given)
        path = self._given.checkpoint
        self._elsewhere = path is not None and is_reference(path)
        if path is not None and self._elsewhere:
            path = str(checkpoint_path(path, self._given.tracking_uri))
            argv = with_checkpoint(argv, path)
        self.resume = None if path is None else ResumeFrom(path)
        if self.resume is not None:
            argv[1:1] = ["--config", self.resume.layer(self.verb)]
        self._method = self._given.method
        if self._method is None and self.resume is not None:
            self._method = method_of([self.resume.config])  # which has been checked just now
        self._chosen: str | None = None
        fits = self.verb == "fit"
        if fits and self.resume is not None:
            self.resume.require_whole()
        with Folders() as self.folders:
            super().__init__(
                lit_offrl.modules.OfflineModule,
                lit_offrl.datamodules.OfflineDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=own.RunRecord if fits else None,
                save_config_kwargs={"command": command},
                trainer_defaults={
                    **TRAINER_DEFAULTS,
                    "logger": {"class_path": _LOGGER} if fits else False,
                    "callbacks": [make() for make in ALWAYS_THERE] if fits else [],
                },
                parser_class=OneLineArgumentParser,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                args=argv,
            )

    # ---- parsing -------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the verb at hand: each costs half a second to set up."""
        return {self.verb: LightningCLI.subcommands()[self.verb]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Name the program as the user does."""
        kwargs.setdefault("prog", "lit-offrl")
        parser = super().init_parser(**kwargs)
        assert isinstance(parser, OneLineArgumentParser)
        parser.method = self._method
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for everything."""
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=0,
            help="Seed of the module, the data's order and split, and the global generators.",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what the module must know of the data; add the options of what is always there."""
        for name in ("observation_dim", "action_dim", "action_low", "action_high"):
            target, read = f"model.init_args.{name}", _spec_reader(name)
            parser.link_arguments("data.spec", target, compute_fn=read, apply_on="instantiate")
        for section in ("model", "data"):
            target = f"{section}.init_args.seed"
            parser.link_arguments(("seed_everything", section), target, compute_fn=one_seed)
        if self.verb == "fit":
            parser.add_lightning_class_args(self.evaluation, "evaluation")
            parser.add_lightning_class_args(own.Checkpoints, "checkpoint")
        if self.verb == "predict":
            parser.add_lightning_class_args(own.PredictionWriter, "predictions")

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        adapt_help(parser, subcommand)
        allow_auto(parser)
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # they are in the file
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without Lightning's warning about arguments that are also in ``sys.argv``."""
        assert isinstance(args, list)  # as given to the constructor
        try:
            self.config = parser.parse_args(args)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{_no_text(args)}is no text, so no options: {error}.") from error
        for section in ("model", "data"):
            part = self.config.get(f"{self.verb}.{section}")
            self._given.require_one_name(section, "" if part is None else part.class_path)
        for line, printed in OneLineArgumentParser.renamed.items():
            if not printed:
                say(line)
                OneLineArgumentParser.renamed[line] = True
        if isinstance(self.config.get(self.verb), Namespace):
            trainer = self.config[self.verb].trainer
            if isinstance(trainer.callbacks, Namespace):  # a single one, not in a list
                trainer.callbacks = [trainer.callbacks]
            require_trainer_options(vars(trainer))
            before = None if self.resume is None else self.resume.config
            self._chosen = resolve_auto(trainer, before)
        self._name_env()
        self._bound_by_data()

    def _name_env(self) -> None:
        """Import the module of an environment that the user has named as ``module:id``.

        That of the checkpoint's run is kept as a name alone, as importing it would run what any
        file says.
        """
        data = self.config[self.verb].get("data")
        options = None if data is None else data.get("init_args")
        if options is None or "env_id" not in options:
            return
        if options.env_id is not None and ":" in options.env_id:
            name_env(options.env_id, "--data.init_args.env_id")
        elif options.env_id is None and self.resume is not None:
            options.env_id = self.resume.env_of_module()

    def before_instantiate_classes(self) -> None:
        """Say what is chosen, and not taken over of the checkpoint, before anything is made."""
        if self._chosen is not None:
            say(self._chosen)
        for option, what in () if self.resume is None else self.resume.left_out:
            if not self._given.give(option):
                say(
                    f"the checkpoint's {option} ({what}) is not taken over: give it again, as"
                    f" --{option} or in a --config file, if it is wanted"
                )

    def _bound_by_data(self) -> None:
        """Have the data take the action bounds that are given to the model, which it gets back."""
        model, data = self.config[self.verb].get("model"), self.config[self.verb].get("data")
        mine, theirs = (
            {} if part is None else part.get("init_args") or {} for part in (model, data)
        )
        for name in ("action_low", "action_high"):
            given = mine.get(name)
            if given is None:
                continue
            if name not in theirs or theirs[name] not in (None, given):
                raise ConfigError(
                    f"model.init_args.{name} is {given} and data.init_args.{name} "
                    f"{theirs.get(name)}: give data.init_args.{name} alone."
                )
            theirs[name], mine[name] = given, None

    def _parse_ckpt_path(self) -> None:
        """The checkpoint's options have been parsed already, below those given."""

    # ---- building ------------------------------------------------------------------------------

    def _dump_config(self) -> None:
        """As Lightning's, without checking again what was parsed just now, and read by libyaml."""
        if not hasattr(self, "config_dump"):
            text = self.parser.dump(
                self.config, **AS_PARSED, skip_link_targets=False, format="yaml"
            )
            self.config_dump = yaml.load(text, _Loader)[self.verb]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer around a module that fits the checkpoint."""
        config, fits = self._get(self.config_init, "trainer"), self.verb == "fit"
        require_cores(vars(config))
        if fits:  # before MLflow's run, which a resumed fit would go on with, is touched
            self._take_folders(config)
        if self.resume is not None:
            self._dump_config()
            self.resume.require_fit(self.model, self.config_dump)
            self.model.resumed_from = self.resume.path
        if fits:
            self._go_on_in_own_run(config)
        if config.get("enable_checkpointing") is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        bars = [each for each in config.get("callbacks") or [] if isinstance(each, ProgressBar)]
        if fits and not bars and config.get("enable_progress_bar") is not False:
            self.trainer_defaults["callbacks"].append(StepProgress())
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"trainer: {error}") from error  # what it says is for the user
        leave_signals_to_us(trainer)
        if fits:
            _require_launcher(trainer, config.get("strategy"))
            _evaluate_late(settings(trainer).callbacks)
        return trainer

    def _take_folders(self, config: Namespace) -> None:
        """Keep other fits out of the checkpoint's folder, and out of the one that is named."""
        checkpoints = self._get(self.config_init, "checkpoint")
        if not config.get("fast_dev_run"):
            checkpoints.hold = self.folders.hold
            if self.resume is not None and self.same_run and not self._elsewhere:
                self.folders.hold(Path(self.resume.path).parent)
        if checkpoints.dirpath is not None:
            checkpoints.hold(Path(checkpoints.dirpath))
            self._require_own_folder(Path(checkpoints.dirpath))

    def _go_on_in_own_run(self, config: Namespace) -> None:
        """Say what differs from the checkpoint's run, and go on in its folder and MLflow run."""
        checkpoints = self._get(self.config_init, "checkpoint")
        loggers = mlflow_loggers(config.get("logger"))
        for logger in loggers:
            if logger._run_name is None and logger._run_id is None:
                logger._run_name = run_name(self.model, self.datamodule.spec)
        if self.resume is not None:
            if changes := self.resume.changes(self.config_dump):
                say(f"differs from the checkpoint's run: {'; '.join(changes)}")
            if checkpoints.dirpath is None and not self._elsewhere:  # MLflow's files are its own
                checkpoints.dirpath = str(Path(self.resume.path).resolve().parent)
        goes_on = self.resume is not None and self.same_run
        go_on_with(loggers, mlflow_runs(self.resume.ours) if self.resume and goes_on else [])

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb; what Lightning refuses once it sees the loaders is for the user."""
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if self.resume is not None and _is_of_restoring(error):
                raise ConfigError(
                    f"{self.resume.path}: cannot be resumed: {reason(error)}"
                ) from error
            if not isinstance(error, MisconfigurationException | RuntimeError | ValueError):
                raise
            precision = str(self.trainer.precision)
            if precision.endswith("-true") and _TYPES_DIFFER.search(str(error)):
                raise ConfigError(
                    f"trainer.precision {precision}: {type(self.model).__name__} computes some of "
                    "its numbers in float32 and cannot be trained so: use 32-true or bf16-mixed."
                ) from error
            if isinstance(error, LitOffRLError) or find_lightnings(error) is not error:
                raise
            raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
        finally:
            self._leave_nothing_open()

    def _leave_nothing_open(self) -> None:
        """Close MLflow's runs, and the other processes if a signal has ended this one.

        Lightning does the former, unless a signal stops it in the midst of its tidying up.
        """
        for logger in self.trainer.loggers:
            if isinstance(logger, own.MLflowRun):
                logger.finalize("failed")  # does nothing where the run is closed
        if signals.received():
            signals.kill_children(getattr(self.trainer.strategy.launcher, "procs", []))

    def _require_own_folder(self, folder: Path) -> None:
        """Refuse a folder with the checkpoint of another run than the one to go on with."""
        there = folder / "last.ckpt"
        resumed = None if self.resume is None else Path(self.resume.path).resolve().parent
        if there.exists() and resumed != folder.resolve():
            raise ConfigError(
                f"{folder}: holds the checkpoint of another run: go on with that by --ckpt_path "
                f"{there}, or give another --checkpoint.dirpath."
            )

    def instantiate_classes(self) -> None:
        """Build everything; jsonargparse wraps our errors into its own, so take them out.

        Where Lightning's classes, such as callbacks, refuse their options, the user is to know.
        """
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            ours = find_ours(error)
            if ours is not None:
                raise ours from error
            if (theirs := find_lightnings(error)) is None:
                raise
            raise ConfigError(f"trainer: {' '.join(str(theirs).split())}") from error


class _Parsed(OfflineCLI):
    """Parses; draws, builds and runs nothing."""

    def _nothing(self, *args: Any) -> None:
        pass

    _set_seed = before_instantiate_classes = _nothing
    instantiate_classes = _run_subcommand = _nothing  # type: ignore[assignment]


def parse_options(argv: Sequence[str]) -> Namespace:
    """Parse a verb's options, defaults and files, and do nothing else.

    Raises:
        ConfigError: An option that the verb would refuse before it builds anything.
    """
    return _Parsed(argv).config[argv[0]]


def one_seed(seed_everything: int, section: Any) -> int:
    """Return the seed of a section, which must not contradict the one for everything.

    Raises:
        ConfigError: it does, or is none.
    """
    require_in(SEEDS, seed_everything=seed_everything)
    given = {} if section is None else section.get("init_args") or {}
    own = given.get("seed") or seed_everything
    if own != seed_everything:
        raise ConfigError(
            f"seed {own} is given to a part and seed_everything is {seed_everything}: "
            "give seed_everything alone."
        )
    return seed_everything


def _spec_reader(name: str) -> Any:
    def read(spec: DatasetSpec) -> Any:
        return getattr(spec, name)

    read.__name__ = name  # shown by --help
    return read


def _require_launcher(trainer: Trainer, strategy: Any) -> None:
    """Refuse a fit in forked or spawned processes, where a signal reaches none that could save."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise ConfigError(
            f"trainer.strategy: with '{name}' no process could save when a signal asks the fit to"
            " stop: give ddp."
        )


def _evaluate_late(callbacks: list[Any]) -> None:
    """Let roll-outs, which a signal may end, follow what else a step's end records."""
    stop = next((i for i, each in enumerate(callbacks) if isinstance(each, own.GracefulStop)), None)
    late = [each for each in callbacks if isinstance(each, own.EvaluationDuringFit)]
    if stop is not None and late:
        callbacks[stop:stop] = late
        for each in late:
            callbacks.remove(each)  # the first, which is where it was


def _is_of_restoring(error: BaseException) -> bool:
    """Whether an error is of Lightning's taking up a checkpoint, and none of this library's own."""
    codes = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    restoring = any(
        Path(code.co_filename).name == "checkpoint_connector.py"
        and code.co_name.lstrip("_").startswith(("restore", "resume"))
        for code in codes
    )
    return restoring and not isinstance(error, LitOffRLError)


_TYPES_DIFFER = re.compile(r"same dtype|scalar type|dtype")


def _no_text(words: Sequence[str]) -> str:
    """Name the option and the file among arguments that is no text: ``--trainer FILE: ``."""
    for option, value in pairwise(["", *words]):
        name, given, after = value.partition("=")
        option, path = (name, Path(after)) if given else (option, Path(value))
        if re.fullmatch("--(?!ckpt_path)[a-z]+", option) and path.is_file():  # a group's file
            try:
                path.read_text("utf-8")
            except UnicodeDecodeError:
                return f"{option} {path}: "
    return ""


def main(argv: Sequence[str], kind: type[OfflineCLI] = OfflineCLI) -> int:
    """Run a verb by a command line of some kind; return 0, or 128 + the signal that stopped it.

    Raises:
        LitOffRLError: an option or the data cannot be used, or training met NaN.
    """
    quiet()
    if "OMP_NUM_THREADS" not in os.environ:
        # small networks gain nothing from a second thread, and as soon as anything else runs
        # their threads wait for each other: measured, a fifth of the steps a second
        torch.set_num_threads(1)
    try:
        kind(argv)
    except signals.Interrupted as stop:
        if signals.is_child():
            return 0  # a failing child would make Lightning kill the first process as it saves
        print(f"lit-offrl: {stop}", file=sys.stderr)
        return 128 + stop.number
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning swallows it
            raise KeyboardInterrupt from None
        raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # Lightning leaves it to the interpreter's end
    return 0
