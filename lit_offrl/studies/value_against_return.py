"""Estimated values beside what the data earned from there on, for any checkpoint with values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.views import FutureStates
from lit_offrl.diffusion import map_encoded
from lit_offrl.modules.checkpoints import load_module
from lit_offrl.modules.dvf import DVFModule
from lit_offrl.modules.occupancy import History
from lit_offrl.studies.inputs import (
    CheckpointStudy,
    Study,
    known_rewards,
    load_data,
    protocol_of,
)
from lit_offrl.studies.measures import correlations

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ValueAgainstReturn(CheckpointStudy):
    """Values of states drawn from all rows of the data, by their own policy's representation.

    Args:
        states: Number of states valued, at least 1.
        samples: Number of draws averaged for one value, n, at least 1.
    """

    states: Annotated[int, "[1, inf)"] = 512
    samples: Annotated[int, "[1, inf)"] = 32

    def run(self) -> Study:
        """Value the states."""
        path = self.ckpt_path
        module = load_module(path, self.device)
        if not isinstance(module, DVFModule) or module.train_part == "occupancy":
            raise ConfigError(
                f"{path}: has no values: give a DVFModule trained with 'all' or 'heads'."
            )
        scalar = ("policy",) if module.policy_representation == "scalar" else ()
        data = load_data(self.data, path, ("actions", "rewards", *scalar))
        if data.spec.observation_dim != module.occupancy.state_dim - 1:
            raise ConfigError(
                f"{data.spec.origin}: has {data.spec.observation_dim} numbers a state where {path} "
                f"was trained on {module.occupancy.state_dim - 1}: choose data of its environment."
            )
        known_rewards(data)  # refuses rows without
        view = FutureStates(module.gamma, None, module.history, module.terminals).bind(data)
        random = np.random.default_rng(mix(self.seed, 8))
        rows = view.rows[torch.from_numpy(random.permutation(len(view.rows))[: self.states])]
        values, returns = [], []
        for number, index in enumerate(rows.split(_BATCH)):
            batch = view.batch(index, torch.zeros(len(index), 1))
            inputs = batch.observations, History.before(batch), batch.policy
            states, history, policy = map_encoded(lambda part: part.to(module.device), inputs)
            keyed = mix(self.seed, 9, number)
            estimated = module.value(
                states, history=history, policy=policy, num_samples=self.samples, seed=keyed
            )
            values.append(estimated.cpu())
            assert batch.returns is not None  # all rewards are known
            returns.append(batch.returns)
        both = {"values": torch.cat(values).numpy(), "returns": torch.cat(returns).numpy()}
        found = correlations(both["values"], both["returns"])
        facts = protocol_of(
            path, data, states=len(rows), samples=self.samples, seed=self.seed, gamma=module.gamma
        )
        return Study({**both, "gamma": module.gamma}, found, facts, path)
