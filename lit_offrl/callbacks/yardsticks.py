"""What a policy's score is read against: the data's own episodes, and behaviour cloning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from rich.table import Table

from lit_offrl.common.seeds import mix
from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Transitions
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.modules.bc import BCModule

_BATCH, _RATE = 256, 1e-3
_STREAM = 0xBC


def clone_behaviour(dataset: OfflineDataset, steps: int, seed: int) -> BCModule:
    """Return behaviour cloning trained on a dataset, on the CPU: seconds for some thousand steps.

    Batches have 256 rows. Nothing is drawn from global generators.
    """
    spec = dataset.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, _STREAM))
        module = BCModule(
            spec.observation_dim,
            spec.action_dim,
            spec.action_low,
            spec.action_high,
            learning_rate=_RATE,
            seed=seed,
        )
    module.spec = spec
    module.normalizer.fit(dataset.columns["observations"])
    view = Transitions().bind(dataset)
    order = RowOrder(view.spans, _BATCH, mix(seed, _STREAM))
    optimizer = module.configure_optimizers()
    for step in range(steps):
        batch = view.batch(order.draw(step).rows, order.uniforms(step, view.num_uniforms))
        optimizer.zero_grad()
        module.losses(batch)["actor"].backward()
        optimizer.step()
    return module.eval()


def yardsticks(
    data: Mapping[str, float],
    dataset: str,
    policy: EvaluationRecord | None = None,
    cloning: EvaluationRecord | None = None,
) -> Table:
    """Return a table of mean scores and returns: the policy, behaviour cloning, the data.

    Args:
        data: ``data/episodes``, ``data/return_mean`` and, with references, ``data/score_mean``.
        dataset: Name of the data.
        policy: Evaluation of what was trained, where it was rolled out.
        cloning: Evaluation of a policy cloned from the same data, where one was trained.
    """
    rows: list[tuple[str, int, float | None, float]] = []
    for record in (policy, cloning):
        if record is not None:
            figures = record.summary()
            name = f"{record.method}, {record.training_steps or 0:,} steps"
            count, mean = len(record.episodes), figures["return_mean"]
            rows.append((name, count, figures.get("score_mean"), mean))
    if data:
        name, count = f"the data ({dataset})", int(data["data/episodes"])
        rows.append((name, count, data.get("data/score_mean"), data["data/return_mean"]))
    scored = any(score is not None for _, _, score, _ in rows)
    table = Table(title="Means beside each other")
    table.add_column("")
    for heading in ("episodes", *(["normalised score"] if scored else []), "return"):
        table.add_column(heading, justify="right")
    for name, count, score, mean in rows:
        cells = [f"{score:.1f}" if score is not None else "–"] if scored else []
        table.add_row(name, f"{count:,}", *cells, f"{mean:.1f}")
    return table
