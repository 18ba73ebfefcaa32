"""The curves of a checkpoint's run, up to its step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.evaluation.record import CURVES, EvaluationRecord, present_names
from lit_offrl.modules.checkpoints import history_of, read_checkpoint
from lit_offrl.studies.inputs import Study, protocol_of
from lit_offrl.tracking.references import Checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainingCurves:
    """The metrics that a checkpoint keeps of its run.

    Args:
        ckpt_path: Any checkpoint of 'fit'.
    """

    ckpt_path: Checkpoint

    def run(self) -> Study:
        """Take the metrics that the checkpoint keeps.

        Raises:
            ConfigError: The checkpoint has no curves.
        """
        history = present_names(history_of(read_checkpoint(self.ckpt_path)))
        if not history:
            raise ConfigError(
                f"{self.ckpt_path}: keeps no curves: give one of 'lit-offrl fit' that was written "
                "after its first trainer.log_every_n_steps steps."
            )
        facts = protocol_of(self.ckpt_path, None)
        for name, point in _last_evaluation(self.ckpt_path, facts["checkpoint_sha256"]).items():
            history[name] = [*history.get(name, []), point]
        return Study({"history": history}, {}, facts, self.ckpt_path)  # MLflow has the metrics


def _last_evaluation(checkpoint: Path, sha256: str) -> dict[str, list[float]]:
    """Return [step, value] by metric of the evaluation that ended the fit, where it is kept.

    It is of the last checkpoint, which therefore does not have it among its own metrics.
    """
    try:
        record = EvaluationRecord.load(checkpoint.with_name("evaluation.json"))
    except EvaluationError:
        return {}
    if record.checkpoint_sha256 != sha256 or record.training_steps is None:
        return {}
    metrics = record.metrics()
    return {name: [record.training_steps, metrics[name]] for name in CURVES if name in metrics}
