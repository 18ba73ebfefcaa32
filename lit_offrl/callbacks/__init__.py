"""What happens around training: stopping safely, keeping records, evaluating."""

from lit_offrl.callbacks.checkpoints import Checkpoints
from lit_offrl.callbacks.curves import Curves
from lit_offrl.callbacks.duration import Duration
from lit_offrl.callbacks.ending import SayWhyEnded
from lit_offrl.callbacks.evaluation import EvaluationDuringFit
from lit_offrl.callbacks.finite import FiniteGuard
from lit_offrl.callbacks.interruption import GracefulStop
from lit_offrl.callbacks.mlflow_run import MLflowRun
from lit_offrl.callbacks.monitors import MonitorCheck
from lit_offrl.callbacks.predictions import PredictionWriter
from lit_offrl.callbacks.record import RunRecord
from lit_offrl.common.signals import Interrupted

__all__ = [
    "Checkpoints",
    "Curves",
    "Duration",
    "EvaluationDuringFit",
    "FiniteGuard",
    "GracefulStop",
    "Interrupted",
    "MLflowRun",
    "MonitorCheck",
    "PredictionWriter",
    "RunRecord",
    "SayWhyEnded",
]
