"""Latents of snippets beside those that LDCQ's two priors propose (LDCQ, Figs. 2, 3 and 5).

Snippets with similar beginnings are taken from the data: the first ones of all episodes, or those
that begin nearest to a position. Each one gives a latent of its posterior, one of the diffusion
prior and one of stage 1's Gaussian prior, both in the snippet's own first state, and the positions
that the world model predicts from these, beside where the data went.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import Snippets
from lit_offrl.datasets.views.snippets import BoundSnippets
from lit_offrl.modules import LDCQStage2Module, LDCQStage3Module
from lit_offrl.modules.checkpoints import load_module
from lit_offrl.modules.ldcq.options import Sampling
from lit_offrl.studies.inputs import CheckpointStudy, Study, load_data, protocol_of
from lit_offrl.studies.maze2d import cells_of, maze_named
from lit_offrl.studies.measures import energy_distance
from lit_offrl.tracking.references import Checkpoint

_SHOWN = 1500  # points of a panel that the figure keeps
_SUPPORT = 0.95  # quantile of the data's nearest distances within which a latent is among them
PRIORS = ("diffusion", "gaussian")


@dataclass(frozen=True, kw_only=True)
class LDCQLatents(CheckpointStudy):
    """Latents of both priors beside the data's, a row for each checkpoint.

    Args:
        ckpt_path: A checkpoint of LDCQ's stage 2 or 3.
        more: Checkpoints of other horizons, each a further row of the figure.
        samples: Number of snippets compared, at least 20, where there are so many.
        at: Position, in the data's units, that the snippets begin nearest to; without it, they are
            the first ones of all episodes.
    """

    more: list[Checkpoint] = field(default_factory=list)
    samples: Annotated[int, "[20, inf)"] = 1000
    at: list[float] | None = None

    def run(self) -> Study:
        """Compare both priors' latents with the data's, one row per checkpoint."""
        data = load_data(self.data, self.ckpt_path, ("actions",))
        rows = [
            _row(path, _load(path, self.device), data, self)
            for path in (self.ckpt_path, *self.more)
        ]
        metrics = {
            f"{prior}_{name}" + (f", H={row['horizon']}" if self.more else ""): row[prior][name]
            for row in rows
            for prior in PRIORS
            for name in ("distance", "outside", "ends_distance")
        }
        numbers: dict[str, Any] = {"rows": rows}
        if (maze := maze_named(data.spec.env_id)) is not None:
            numbers |= cells_of(maze)
        facts = protocol_of(
            self.ckpt_path,
            data,
            more=[str(path) for path in self.more],
            snippets=[row["snippets"] for row in rows],
            at=self.at,
            seed=self.seed,
        )
        return Study(numbers, metrics, facts, self.ckpt_path)


def _load(path: Path, device: str) -> LDCQStage2Module:
    module = load_module(path, device)
    if isinstance(module, LDCQStage3Module) and module.stage2 is not None:
        module = module.stage2
    if not isinstance(module, LDCQStage2Module):
        raise ConfigError(
            f"{path}: holds no diffusion prior of LDCQ: give a checkpoint of its stage 2 or 3."
        )
    return module.eval()


@torch.no_grad()
def _row(
    path: Path, module: LDCQStage2Module, data: OfflineDataset, options: LDCQLatents
) -> dict[str, Any]:
    stage1 = module.stage1
    if data.spec.observation_dim != len(stage1.normalizer.low):
        raise ConfigError(
            f"{path}: was trained on observations of {len(stage1.normalizer.low)} numbers, and "
            f"{data.spec.origin} has {data.spec.observation_dim}: give the --data it is of."
        )
    trained_in = None if module.spec is None else module.spec.env_id
    if None not in (trained_in, data.spec.env_id) and trained_in != data.spec.env_id:
        raise ConfigError(
            f"{path}: was trained on data of {trained_in}, and {data.spec.origin} is of "
            f"{data.spec.env_id}: give the --data it is of."
        )
    try:
        module.require(Sampling(), without_goal=True)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if stage1.latent_dim < 2:
        raise ConfigError(f"{path}: has latents of 1 number, and a plane needs 2: train with more.")
    view = Snippets(stage1.horizon, partial=stage1.partial).bind(data, options.device)
    index = _snippets(view, data, module.goal_dims, options)
    batch = view.batch(index, torch.zeros(len(index), view.num_uniforms, device=options.device))
    noise = ShardedGenerator(options.seed, device=options.device)
    mean, std = stage1.posterior(batch)
    states = stage1.normalize(batch.observations[:, 0])
    prior_mean, prior_std = stage1.prior(states)
    latents = {
        "data": mean + std * noise.normal(mean.shape),
        "diffusion": module.sample(batch.observations[:, 0], 1, noise=noise)[:, 0],
        "gaussian": prior_mean + prior_std * noise.normal(mean.shape),
    }
    dims = list(module.goal_dims)
    ends = {"data": batch.next_observations[:, dims].cpu().numpy()}
    for name in PRIORS:
        after = stage1.denormalize(stage1.world(states, latents[name]))
        ends[name] = after[:, dims].cpu().numpy()
    found = compare_latents({name: part.cpu().numpy() for name, part in latents.items()})
    half = len(index) // 2
    order = np.random.default_rng(options.seed).permutation(len(index))
    ends_floor = energy_distance(ends["data"][order[:half]], ends["data"][order[half:]])
    for name in PRIORS:
        found[name]["ends_distance"] = energy_distance(ends[name], ends["data"])
    for name in ("data", *PRIORS):
        found[name]["ends"] = ends[name][:_SHOWN]
    start = batch.observations[:, 0, dims].mean(0).cpu().numpy()
    return {
        "horizon": stage1.horizon,
        "snippets": len(index),
        "start": start,
        "ends_floor": ends_floor,
        **found,
    }


def compare_latents(latents: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compare latents (N, z) of both priors with the data's.

    Each dimension is divided by the standard deviation of the data's latents.

    Returns:
        For each source its ``points`` in the plane of the data's two principal components. For each
        prior the energy ``distance`` to the data, and the fraction ``outside`` of them, which is
        farther from the nearest latent of the data than 95 % of these are from each other.
        ``floor`` is the distance of two halves of the data, ``variance`` the fraction of their
        variance in the plane.
    """
    from sklearn.decomposition import PCA  # seconds to import

    scale = latents["data"].std(0).clip(1e-6)
    whole = {name: part / scale for name, part in latents.items()}
    data = whole["data"]
    plane = PCA(2).fit(data)
    tree = cKDTree(data)
    near = np.quantile(tree.query(data, k=2)[0][:, 1], _SUPPORT)
    order = np.random.default_rng(0).permutation(len(data))
    half = len(data) // 2
    found: dict[str, Any] = {
        name: {"points": plane.transform(part[:_SHOWN])} for name, part in whole.items()
    }
    for name in PRIORS:
        found[name]["distance"] = energy_distance(whole[name], data)
        found[name]["outside"] = float((tree.query(whole[name])[0] > near).mean())
    found["floor"] = energy_distance(data[order[:half]], data[order[half:]])
    found["variance"] = float(plane.explained_variance_ratio_.sum())
    return found


def _snippets(
    view: BoundSnippets, data: OfflineDataset, dims: tuple[int, ...], options: LDCQLatents
) -> torch.Tensor:
    rows = view.rows.cpu().numpy()
    if options.at is not None:
        if len(options.at) != len(dims):
            raise ConfigError(
                f"--at: {len(options.at)} numbers are given; positions have {len(dims)}."
            )
        gaps = np.linalg.norm(
            data.columns["observations"][rows][:, list(dims)] - np.asarray(options.at), axis=1
        )
        count = min(options.samples, len(rows))
        rows = rows[np.sort(np.argpartition(gaps, count - 1)[:count])]
    else:
        rows = np.intersect1d(rows, data.episodes[:, 0])
        chosen = np.linspace(0, len(rows) - 1, min(options.samples, len(rows))).astype(int)
        rows = rows[chosen]
    if len(rows) < 20:
        raise ConfigError(
            f"{data.spec.origin}: {len(rows)} snippets of {view.view.horizon} steps begin an "
            "episode, too few to compare: give a position with --at."
        )
    return torch.as_tensor(rows, device=view.device)
