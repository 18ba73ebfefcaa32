"""Estimated values beside what the data earned from there on, for any checkpoint with values."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.randomness import mix
from lit_offrl.datasets.views import FutureStates
from lit_offrl.modules.checkpoints import load_module
from lit_offrl.modules.dvf import DVFModule
from lit_offrl.modules.history import History
from lit_offrl.studies.correlations import correlations
from lit_offrl.studies.inputs import Study, add_checkpoint_options, load_data, protocol_of

_BATCH = 64


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    add_checkpoint_options(parser, "a checkpoint with values", data=True)
    parser.add_argument("--states", type=int, default=512, help="how many [512]")
    parser.add_argument("--samples", type=int, default=32, help="n, draws for one value [32]")


def run(options: argparse.Namespace) -> Study:
    """Value states drawn from all rows of the data, by their own policy's representation.

    Raises:
        LitOffRLError: checkpoint or data do not fit the study.
    """
    for name in ("states", "samples"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}: give at least 1.")
    path = options.ckpt_path
    module = load_module(path, options.device)
    if not isinstance(module, DVFModule) or module.train_part == "occupancy":
        raise ConfigError(f"{path}: has no values: give a DVFModule trained with 'all' or 'heads'.")
    scalar = ("policy",) if module.policy_representation == "scalar" else ()
    data = load_data(options.data, path, ("actions", "rewards", *scalar))
    if data.spec.observation_dim != module.occupancy.state_dim - 1:
        raise ConfigError(
            f"{data.spec.origin}: has {data.spec.observation_dim} numbers a state where {path} "
            f"was trained on {module.occupancy.state_dim - 1}: choose data of its environment."
        )
    view = FutureStates(module.gamma, None, module.history, module.terminals).bind(data)
    random = np.random.default_rng(mix(options.seed, 8))
    rows = view.rows[torch.from_numpy(random.permutation(len(view.rows))[: options.states])]
    values, returns = [], []
    for number, index in enumerate(rows.split(_BATCH)):
        batch = view.batch(index, torch.zeros(len(index), 1))
        if batch.returns is None:
            raise DatasetError(f"{data.spec.origin}: some rewards are unlabelled: choose others.")
        history = History.before(batch)
        if history is not None:
            taken = history.actions
            history = History(
                history.states.to(module.device),
                None if taken is None else taken.to(module.device),
                history.mask.to(module.device),
            )
        phi = None if batch.policy is None else batch.policy.to(module.device)
        states = batch.observations.to(module.device)
        keyed = mix(options.seed, 9, number)
        asked = {"history": history, "policy": phi, "num_samples": options.samples}
        values.append(module.value(states, **asked, seed=keyed).cpu())
        returns.append(batch.returns)
    both = {"values": torch.cat(values).numpy(), "returns": torch.cat(returns).numpy()}
    found = correlations(both["values"], both["returns"])
    facts = protocol_of(
        path, data, states=len(rows), samples=options.samples, seed=options.seed, gamma=module.gamma
    )
    return Study({**both, "gamma": module.gamma}, found, facts, path)
