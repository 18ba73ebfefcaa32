"""Policies as MLflow's models: written to a folder, and described for a run that gets them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lit_offrl.common.errors import ConfigError, first_line
from lit_offrl.common.files import file_sha256, make_folder
from lit_offrl.common.quiet import say
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.checkpoints import read_checkpoint
from lit_offrl.tracking.outbox import LoggedModel
from lit_offrl.tracking.provenance import dataset_digest
from lit_offrl.tracking.runs import TAG
from lit_offrl.tracking.store import set_patience

CHECKPOINT_TAG = f"{TAG}checkpoint_sha256"
_REFUSED = re.compile(r"""[/:.%"']""")  # by MLflow, in a model's name
_LONGEST_PARAM = 250  # letters, as of runs
_CODE = Path(__file__).with_name("served_policy.py")


def logged_model(
    module: OfflineModule,
    checkpoint: Path,
    folder: Path,
    metrics: Mapping[str, float],
    policy_options: Mapping[str, Any] | None = None,
) -> LoggedModel:
    """Write what MLflow keeps of an evaluated checkpoint, and return its description.

    The folder has the exported policy, with the code by which MLflow serves it, and the checkpoint
    itself, so that ``models:/NAME@ALIAS`` is a checkpoint as well. Of a policy that cannot be
    exported there is the checkpoint alone; a line says why.

    Args:
        module: The trained method.
        checkpoint: Its file.
        folder: An empty folder, or one that is made.
        metrics: What the policy has scored, by MLflow's names.
        policy_options: Options of the policy.
    """
    make_folder(folder)
    try:
        write_policy(module, policy_options or {}, folder)
        kind = "policy"
    except ConfigError as error:
        said = first_line(error).rstrip(".")
        say(f"MLflow gets the checkpoint without a policy that it can serve: {said}.")
        kind = "checkpoint"
    shutil.copyfile(checkpoint, folder / checkpoint.name)
    steps = read_checkpoint(checkpoint).get("global_step", 0)
    spec = module.spec or DatasetSpec("unknown", module.observation_dim)
    options = {k: v for k, v in module.hparams.items() if not k.startswith("_")}
    facts = {"method": type(module).__name__, "dataset": spec.name, "training_steps": steps}
    acting = {f"policy.{name}": value for name, value in (policy_options or {}).items()}
    params = {k: str(v)[:_LONGEST_PARAM] for k, v in {**facts, **options, **acting}.items()}
    sha256 = file_sha256(checkpoint)
    words = json.dumps([sha256, acting, sorted(metrics.items())], default=str)
    return LoggedModel(
        key=hashlib.sha256(words.encode()).hexdigest()[:32],
        name=_REFUSED.sub("-", f"{facts['method']}-{spec.name}-seed{module.seed}"),
        kind=kind,
        folder=str(folder),
        params=params,
        tags={CHECKPOINT_TAG: sha256},
        step=steps,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        dataset=spec.name,
        digest=dataset_digest(spec),
        stamp=int(time.time() * 1000),
    )


def write_policy(module: OfflineModule, options: Mapping[str, Any], folder: Path) -> None:
    """Write a module's policy to a folder as MLflow serves it.

    Raises:
        ConfigError: It cannot be exported.
    """
    from lit_offrl.export import export_policy, load_onnx

    with TemporaryDirectory() as scratch:
        file = export_policy(module.policy(**options), scratch, "onnx")
        sizes, outputs = load_onnx(file).facts.inputs, load_onnx(file).facts.outputs
        set_patience()
        _save(file, dict(sizes), dict(outputs), folder)


def _save(file: Path, sizes: dict[str, int], outputs: dict[str, int], folder: Path) -> None:
    import mlflow
    import onnxruntime
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    def tensors(sizes: Mapping[str, int]) -> Any:
        named = len(sizes) > 1
        return Schema(
            [
                TensorSpec(np.dtype(np.float32), (-1, size), name if named else None)
                for name, size in sizes.items()
            ]
        )

    given = {name: size for name, size in sizes.items() if name != "noise"}
    example: Any = {name: np.zeros((1, size), np.float32) for name, size in given.items()}
    params: Any = ParamSchema([ParamSpec("seed", "long", -1)]) if "noise" in sizes else None
    # MLflow warns of its code's annotations, by a filter of its own: recorded, they are not shown.
    with warnings.catch_warnings(record=True):
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(_CODE),
            artifacts={"policy": str(file)},
            signature=ModelSignature(tensors(given), tensors(outputs), params),
            input_example=example if len(example) > 1 else example["observations"],
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"numpy=={np.__version__}",
                f"onnxruntime=={onnxruntime.__version__}",
            ],
        )
