"""Which of the Trainer's options and of Lightning's callbacks do here what they promise.

Lightning takes more than a run of this library can use: rows come in an order that depends on the
number of the step alone, modules set the rate of each step themselves, and epochs do not count. An
option that would be overruled in silence is refused here, before anything is built; the others work
as Lightning documents them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch import callbacks as stock
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import ProgressBar, Timer

from lit_offrl import callbacks as own
from lit_offrl.callbacks.progress import StepProgress
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.quiet import say
from lit_offrl.common.ranges import require_in

RANGES = {
    "accumulate_grad_batches": "[1, inf)",
    "check_val_every_n_epoch": "[1, inf)",
    "gradient_clip_val": "[0, inf)",
    "limit_train_batches": "(0, inf)",
    "limit_predict_batches": "(0, inf)",
    "log_every_n_steps": "[1, inf)",
    "num_nodes": "[1, inf)",
    "num_sanity_val_steps": "[-1, inf)",
    "overfit_batches": "[0, inf)",
    "val_check_interval": "(0, inf)",
}
"""Of numbers with which Lightning begins to train, and then stumbles or does something else."""

_RATES = "modules set the rate of each step themselves, by model.init_args.learning_rate and decay"
_AVERAGES = "methods that act by averaged weights keep those themselves, as their papers say"

ALWAYS_THERE = (
    own.FiniteGuard,
    own.Curves,
    own.GracefulStop,
    own.Duration,
    own.MonitorCheck,
    own.SayWhyEnded,
)
"""The callbacks that every fit has, without options."""

REFUSED_CALLBACKS: dict[type[Callback], str] = {
    stock.BaseFinetuning: f"{_RATES}, and train all of their networks",
    stock.BatchSizeFinder: "data.init_args.batch_size holds for a whole run; measure a few of them",
    stock.GradientAccumulationScheduler: "the order of rows goes by the number of steps; give "
    "trainer.accumulate_grad_batches for the whole run",
    stock.LearningRateFinder: f"{_RATES}, so that all of its trials would run at one rate; compare "
    "rates by a sweep",
    stock.ModelPruning: "it renames weights, so that checkpoints could neither be resumed nor act",
    stock.OnExceptionCheckpoint: "it saves weights half-way through a step, and resumes from them "
    "unasked; fit saves between steps, and when a signal asks it to stop",
    stock.StochasticWeightAveraging: f"{_RATES}; {_AVERAGES}",
    stock.WeightAveraging: _AVERAGES,
    own.Checkpoints: "fit has it already: its options are --checkpoint.*",
    own.EvaluationDuringFit: "fit has it already: its options are --evaluation.*",
    own.PredictionWriter: "predict has it already: its options are --predictions.*",
    **dict.fromkeys((*ALWAYS_THERE, own.RunRecord), "fit has it already"),
    StepProgress: "fit has it already, unless trainer.enable_progress_bar is false",
}
"""Callbacks that cannot do what they promise here, and why not; subclasses of theirs neither."""

REFUSED_OPTIONS = {
    "barebones": "it leaves out what fit keeps of a run; give --trainer.logger false, "
    "--trainer.enable_checkpointing false and --trainer.enable_progress_bar false",
    "model_registry": "checkpoints stay in the run's folder",
    "reload_dataloaders_every_n_epochs": "the data of a run never change",
}
"""Options of the Trainer that can only be left as they are, and why."""

_UNTRIED_STRATEGIES = ("fsdp", "deepspeed", "xla", "model_parallel", "hpu")
_TOO_MANY = 4  # processes a core, above which none of them would get anywhere


def require_trainer_options(trainer: Mapping[str, Any]) -> None:
    """Refuse what the Trainer would take and not do, of its options as they are parsed.

    Raises:
        ConfigError: naming the option or the callback, and what to do.
    """
    for name, interval in RANGES.items():
        value = trainer.get(name)
        if isinstance(value, int | float):
            require_in(interval, **{f"trainer.{name}": value})
    for name, why in REFUSED_OPTIONS.items():
        if trainer.get(name):
            raise ConfigError(f"trainer.{name} cannot be used: {why}.")
    if not isinstance(trainer.get("val_check_interval"), int | float | None):
        raise ConfigError(
            "trainer.val_check_interval is a time, which a resumed run could not repeat: give a "
            "number of batches."
        )
    for unit in ("steps", "epochs"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if least is not None and most is not None and 0 <= most < least:
            raise ConfigError(
                f"trainer.min_{unit} is {least} and trainer.max_{unit} {most}: lower one or raise "
                "the other."
            )
    if str(trainer.get("strategy")).startswith(_UNTRIED_STRATEGIES):
        raise ConfigError(
            f"trainer.strategy {trainer['strategy']} splits the networks, whose averages and "
            "checkpoints are whole here: use ddp."
        )
    if str(trainer.get("precision")).startswith("transformer-engine"):
        raise ConfigError(
            f"trainer.precision {trainer['precision']} replaces layers, whose averages and "
            "checkpoints would not fit: use bf16-mixed."
        )
    kinds = list(callback_classes(trainer))
    for kind in kinds:
        for refused, why in REFUSED_CALLBACKS.items():
            if issubclass(kind, refused):
                raise ConfigError(f"trainer.callbacks: {kind.__name__} cannot be used: {why}.")
    bars = [kind.__name__ for kind in kinds if issubclass(kind, ProgressBar)]
    if bars and trainer.get("enable_progress_bar") is False:
        raise ConfigError(
            f"trainer.enable_progress_bar is false, and trainer.callbacks has a {bars[0]}: leave "
            "one of them out."
        )
    if trainer.get("max_time") is not None and any(issubclass(kind, Timer) for kind in kinds):
        raise ConfigError("trainer.max_time and a Timer in trainer.callbacks: give one of them.")


def callback_classes(trainer: Mapping[str, Any]) -> Iterator[type[Callback]]:
    """Yield the classes of the callbacks among a Trainer's parsed options.

    Parsing has imported them; this imports nothing.
    """
    given = trainer.get("callbacks") or []
    for one in given if isinstance(given, list) else [given]:
        module, _, name = str(one.get("class_path")).rpartition(".")
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Callback):
            yield kind


def require_cores(trainer: Mapping[str, Any]) -> None:
    """Refuse many more processes than this machine has cores, before they are started.

    A few too many are warned of: they work, slower than fewer would. Where another program starts
    the processes, such as SLURM, that program has counted the cores.

    Raises:
        ConfigError: there would be more than four a core.
    """
    if "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS") or 1) > 1:
        return
    accelerator, devices = trainer.get("accelerator"), str(trainer.get("devices"))
    faster = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not faster)
    if not on_cpu or not devices.isdecimal():
        return
    processes, cores = int(devices), len(os.sched_getaffinity(0))
    if processes > _TOO_MANY * cores:
        raise ConfigError(
            f"trainer.devices is {processes}, each a process, and this machine has {cores} CPU "
            f"cores: give at most {cores}."
        )
    if processes > max(1, cores):
        say(
            f"trainer.devices is {processes}, each a process, and this machine has {cores} CPU "
            "cores: fewer would train faster"
        )
