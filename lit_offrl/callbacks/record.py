"""Files that a run writes besides its weights: config, figures, and all of it in MLflow."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_offrl.callbacks.checkpoints import Checkpoints, run_folder
from lit_offrl.callbacks.curves import Curves
from lit_offrl.callbacks.interruption import end_training
from lit_offrl.callbacks.lookup import find_callback, settings
from lit_offrl.callbacks.mlflow_run import MLflowRun, mlflow_loggers, mlflow_origin
from lit_offrl.common import signals
from lit_offrl.common.errors import FileError
from lit_offrl.common.files import shown, write_whole
from lit_offrl.common.quiet import say
from lit_offrl.evaluation.protocol import evaluated
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.evaluation.scores import has_references, normalized_score
from lit_offrl.figures import save_figure, training_curves
from lit_offrl.modules.base import CHECKPOINT_KEY, OfflineModule
from lit_offrl.modules.checkpoints import load_module
from lit_offrl.tracking.outbox import Input, curve_points
from lit_offrl.tracking.provenance import code_tags, dataset_input, description
from lit_offrl.tracking.store import redacted, runs_address

CONFIG_KEY = "config"
MLFLOW_KEY = "mlflow"
AS_PARSED = {"skip_none": False, "skip_validation": True}
"""How a config is written that a parser has checked already: whole, and in half the time."""


class RunRecord(SaveConfigCallback):
    """Keeps the whole config in the checkpoint, the run's folder and MLflow; draws the figures.

    MLflow cuts parameters at 250 characters, so ``config.yaml`` is the record of a run:
    ``lit-offrl fit --config config.yaml`` repeats it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.command = redacted(kwargs.pop("command", ""))
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})
        self.text = redacted(self.parser.dump(self.config, **AS_PARSED))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning would save the config here, where the run's folder is not known yet."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the config."""
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config to the run's folder and to MLflow."""
        resumed = trainer.ckpt_path is not None
        path = run_folder(trainer) / ("config-resumed.yaml" if resumed else "config.yaml")
        write_whole(path, self.text)
        runs = _mlflow_runs(trainer)
        data = (yaml.safe_load(self.text).get("data") or {}) if runs else {}
        curves = find_callback(trainer, Curves)
        for run in runs:
            run.keep_in(path.parent)
            run.log_hyperparams({"data": data, **data_figures(trainer)})
            run.log_facts(run_facts(trainer, pl_module))
            run.outbox.tags.update(code_tags(self.command))
            if not resumed:
                run.log_description(description(run_facts(trainer, pl_module)))
            if (data_of_run := training_data(trainer)) is not None:
                run.log_input(data_of_run)
            if resumed and curves is not None:  # what was held back when a process was killed
                run.outbox.points += curve_points(curves.history, int(time.time() * 1000))
            run.log_files(path)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what resuming needs: the config, and which MLflow run to go on with."""
        ours = checkpoint.setdefault(CHECKPOINT_KEY, {})
        ours[CONFIG_KEY] = self.text
        if trainer.is_global_zero:
            runs = [mlflow_origin(logger) for logger in mlflow_loggers(trainer.loggers)]
            if runs:
                ours[MLFLOW_KEY] = runs[0]
            if len(runs) > 1:
                ours[MLFLOW_KEY]["beside"] = runs[1:]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figures, and give MLflow the files of the run with its last checkpoint."""
        end_training(trainer)
        checkpoints = find_callback(trainer, Checkpoints)
        if not trainer.is_global_zero or settings(trainer).fast_dev_run:
            return
        folder = run_folder(trainer)
        self._draw(trainer, pl_module)
        for run in _mlflow_runs(trainer):
            if (folder / "figures").is_dir():
                run.log_files(folder / "figures", "figures")
            for record in sorted(folder.glob("evaluation*.json")):
                run.log_files(record)
            if checkpoints is not None:
                run.log_files(Path(checkpoints.last_model_path), "checkpoints")
                if checkpoints.best_path is not None:
                    run.log_files(checkpoints.best_path, "checkpoints")
            print(f"runs: {runs_address(run.tracking_uri, str(run.experiment_id))}")
        print(f"run: {shown(folder)}")
        if checkpoints is not None and checkpoints.namesake is not None:
            env_id = getattr(getattr(settings(trainer).datamodule, "spec", None), "env_id", None)
            argv = scoring(pl_module, env_id, shown(checkpoints.last_model_path))
            say(
                f"{shown(checkpoints.namesake)} is of an earlier run; evaluate this one by: "
                f"{shlex.join(argv)}"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell MLflow's run whether a signal has ended it, right before it is closed."""
        for run in _mlflow_runs(trainer):
            run.stopped = isinstance(exception, signals.Interrupted | KeyboardInterrupt)

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        folder = run_folder(trainer) / "figures"
        curves = find_callback(trainer, Curves)
        figures = {}
        if curves is not None and curves.history:
            figures["training_curves"] = training_curves(curves.history)
        if isinstance(module, OfflineModule):
            try:
                figures |= module.figures()
            except Exception as error:  # a drawing must not cost a trained run its other records
                rank_zero_warn(f"{type(module).__name__}.figures() failed: {error}")
        for name, figure in figures.items():
            try:
                save_figure(figure, folder / f"{name}.png")
            except FileError as error:  # nor must a full disk
                say(str(error))


def scoring(module: LightningModule, env_id: str | None, checkpoint: str) -> list[str]:
    """Return the command that scores a checkpoint: by ``ope`` where the data name no environment.

    It names what no file's word is taken for: an environment or a method of the user's own.
    """
    argv = ["lit-offrl", "ope" if env_id is None else "evaluate", "--ckpt_path", checkpoint]
    if env_id is not None and ":" in env_id:
        argv += ["--env", env_id]
    own = type(module).__module__
    if own.partition(".")[0] not in ("lit_offrl", "__main__"):
        argv += ["--import", own]
    return argv


def data_figures(trainer: Trainer) -> dict[str, float]:
    """Return the returns of the data's own episodes, held out or not, for tables that compare
    policies with them.

    Episodes that the file's end cuts off do not count. Empty where the data have no rewards, or
    not all of them, or where scores are of success, which such recordings did not aim at.
    """
    data = getattr(settings(trainer).datamodule, "recorded", None)
    if data is None or "rewards" not in data.columns or "reward_mask" in data.columns:
        return {}
    if data.spec.score_of == "success":
        return {}
    returns = data.complete_returns()
    if len(returns) == 0:
        return {}
    figures = {"data/episodes": len(returns), "data/return_mean": float(returns.mean())}
    if has_references(data.spec):
        figures["data/score_mean"] = float(normalized_score(returns, data.spec).mean())
    return figures


def training_data(trainer: Trainer) -> Input | None:
    """Return the data of a training as MLflow has them; None where none are known."""
    data = getattr(settings(trainer).datamodule, "recorded", None)
    if data is None:
        return None
    figures = {name.removeprefix("data/"): value for name, value in data_figures(trainer).items()}
    figures.pop("episodes", None)  # complete ones alone
    return dataset_input(data.spec, data.columns, len(data.episodes), **figures)


def describe_runs(trainer: Trainer, module: LightningModule, record: EvaluationRecord) -> None:
    """Describe in MLflow's run how the policy was evaluated; keep it as a model if requested."""
    if trainer.is_global_zero:
        for run in _mlflow_runs(trainer):
            run.log_description(description(run_facts(trainer, module), evaluated(record)))
            if run.log_model and record.checkpoint is not None:
                from lit_offrl.tracking.models import logged_model  # what it needs is an extra's

                folder = run_folder(trainer) / "model"
                shutil.rmtree(folder, ignore_errors=True)
                file, metrics = Path(record.checkpoint), record.metrics()
                run.outbox.models.append(logged_model(load_module(file), file, folder, metrics))


def run_facts(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return what runs are grouped by; what is unknown is left out."""
    spec = getattr(settings(trainer).datamodule, "spec", None)
    facts = {
        "method": type(module).__name__,
        "dataset": getattr(spec, "name", None),
        "dataset_sha256": getattr(spec, "sha256", None),
        "max_steps": trainer.max_steps,
        "precision": trainer.precision,
        "seed": getattr(module, "seed", None),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _mlflow_runs(trainer: Trainer) -> list[MLflowRun]:
    return [logger for logger in trainer.loggers if isinstance(logger, MLflowRun)]
