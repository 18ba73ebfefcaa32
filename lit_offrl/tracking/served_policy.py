"""An exported policy as a model of MLflow's: raw observations in, actions out.

This file is copied beside the policy, and is all that MLflow runs of it: NumPy and onnxruntime are
needed, this library is not, and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel


class ServedPolicy(PythonModel):
    """Acts by the graph of ``policy.onnx``.

    What it takes, by name: ``observations`` (E, o); ``goals`` (E, g) or ``rewards`` (E, 1) where
    the policy is told them; ``state`` (E, s) where it has one, whose answer has ``next_state``,
    zeros where an episode begins. Noise is drawn here, by the parameter ``seed`` where it is not
    negative, so that one request has one answer.
    """

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Open the graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # small graphs are slower with more
        options.log_severity_level = 3
        path = context.artifacts["policy"]
        self._graph = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._sizes = {one.name: int(one.shape[1]) for one in self._graph.get_inputs()}
        self._random = np.random.default_rng()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return actions (E, a), float32; with a state a mapping of ``actions``, ``next_state``."""
        given = model_input if isinstance(model_input, Mapping) else {"observations": model_input}
        noise = self._sizes.get("noise")
        feed = {name: self._read(name, given) for name in self._sizes if name != "noise"}
        rows = {len(array) for array in feed.values()}
        if len(rows) > 1:
            raise _refusal(f"inputs have {sorted(rows)} rows: give each as many")
        if noise is not None:
            seed = int((params or {}).get("seed", -1))
            random = self._random if seed < 0 else np.random.default_rng(seed)
            feed["noise"] = random.standard_normal((*rows, noise), np.float32)
        names = [one.name for one in self._graph.get_outputs()]
        found = dict(zip(names, self._graph.run(None, feed), strict=True))
        return found if len(found) > 1 else found["actions"]

    def _read(self, name: str, given: Mapping[str, Any]) -> np.ndarray:
        if name not in given:
            raise _refusal(f"there is no input '{name}'")
        try:
            array = np.asarray(given[name], np.float32)
        except (TypeError, ValueError):
            raise _refusal(f"{name} are no numbers, or rows of different lengths") from None
        if array.ndim != 2 or array.shape[1] != self._sizes[name] or len(array) == 0:
            wanted = f"rows of {self._sizes[name]} numbers"
            raise _refusal(f"{name} have the shape {array.shape}: give {wanted}")
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise _refusal(f"{name}: row {row} has a number that is not finite")
        return array


def _refusal(said: str) -> MlflowException:
    return MlflowException(f"{said}.", error_code=INVALID_PARAMETER_VALUE)


set_model(ServedPolicy())
