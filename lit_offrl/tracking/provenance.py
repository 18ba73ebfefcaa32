"""What a run was made from, as MLflow shows it: its data, its code, and a description in words."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl import __version__
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.tracking.outbox import Input
from lit_offrl.tracking.runs import TAG

_DIGEST = 12  # letters; MLflow takes 36, which fill a column of its table
_GIT_SECONDS = 5.0


def dataset_digest(spec: DatasetSpec) -> str:
    """Return what MLflow tells datasets of one name apart by.

    The first letters of the file's sha256; of data that are no single file, those of a hash of what
    is known of them.
    """
    facts = json.dumps(spec.to_dict(), sort_keys=True, default=str)
    return (spec.sha256 or hashlib.sha256(facts.encode()).hexdigest())[:_DIGEST]


def dataset_input(
    spec: DatasetSpec, columns: Mapping[str, np.ndarray], episodes: int, **more: float
) -> Input:
    """Return the data of a training as MLflow's runs have them.

    Args:
        spec: What is known of them.
        columns: Their columns (N, …).
        episodes: Number of episodes.
        **more: Further figures for the profile, such as ``return_mean``.
    """
    tensors = [
        {
            "type": "tensor",
            "name": name,
            "tensor-spec": {"dtype": str(column.dtype), "shape": [-1, *column.shape[1:]]},
        }
        for name, column in columns.items()
    ]
    schema = {"mlflow_tensorspec": {"features": json.dumps(tensors), "targets": None}}
    rows = len(next(iter(columns.values()), ()))
    profile = {"rows": rows, "episodes": episodes, "sha256": spec.sha256, **more}
    if spec.handling:
        profile["handling"] = "; ".join(spec.handling)
    is_file = Path(spec.origin).is_file()
    return Input(
        name=spec.name,
        digest=dataset_digest(spec),
        source_type="local" if is_file else "code",
        source=json.dumps({"uri": spec.origin}),
        schema=json.dumps(schema),
        profile=json.dumps(profile),
        context="training",
    )


def code_tags(command: str) -> dict[str, str]:
    """Return the tags that name the code: library's version, command, and the folder's commit."""
    tags = {f"{TAG}version": __version__, f"{TAG}command": command}
    if (commit := _git_commit()) is not None:
        tags["mlflow.source.git.commit"] = commit
    return tags


def _git_commit() -> str | None:
    """Return the commit that the working folder is at; None outside of a git repository."""
    try:
        words = ["git", "rev-parse", "--verify", "HEAD"]
        found = subprocess.run(words, capture_output=True, text=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def description(facts: Mapping[str, Any], protocol: Sequence[str] = ()) -> str:
    """Return a run's description in Markdown.

    Args:
        facts: Those that runs are grouped by, see ``run_facts``.
        protocol: Sentences on how the policy was evaluated.
    """
    words = {name: f"{value:,}" if type(value) is int else f"{value}" for name, value in
             facts.items()}  # fmt: skip
    first = f"**{words.get('method', 'A policy')}**"
    if "dataset" in words:
        sha256 = str(words.get("dataset_sha256", ""))
        first += f" on `{words['dataset']}`" + (f" (sha256 `{sha256[:12]}…`)" if sha256 else "")
    said = {"max_steps": "{} steps", "precision": "precision {}", "seed": "seed {}"}
    parts = [first, *(text.format(words[name]) for name, text in said.items() if name in words)]
    lines = [", ".join(parts) + ".", *protocol, f"lit-offrl {__version__}."]
    return "\n\n".join(lines)
