"""d3rlpy's IQL or CQL on given columns, step by step; for the Python of an environment with it.

``python peer_d3rlpy_steps.py COLUMNS.npz THREADS BATCH WIDTH,WIDTH RATE IQL`` says ``ready`` and
then, for each number n that it reads, takes n steps and answers with a line of JSON: seconds of the
wall's and of the processor's clock for sampling, and both for updates. At ``work`` it takes one and
answers with its FLOPs and the number of trained parameters. It imports nothing of this project,
whose packages that environment need not have.
"""

from __future__ import annotations

import gc
import json
import sys
import time

import numpy as np
import torch
from d3rlpy.algos import CQLConfig, IQLConfig
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import MDPDataset
from d3rlpy.models import VectorEncoderFactory
from torch.utils.flop_counter import FlopCounterMode


def clocks() -> np.ndarray:
    """Seconds of the wall's and of the processor's clock."""
    return np.array([time.perf_counter(), time.process_time()])


def count_parameters() -> int:
    """Numbers that all optimisers move."""
    optimizers = [held for held in gc.get_objects() if isinstance(held, torch.optim.Optimizer)]
    groups = [group["params"] for one in optimizers for group in one.param_groups]
    return sum({id(part): part.numel() for group in groups for part in group}.values())


def main(columns: str, threads: str, batch: str, widths: str, rate: str, algorithm: str) -> None:
    """Answer each number with the times of so many steps."""
    answers, sys.stdout = sys.stdout, sys.stderr  # d3rlpy logs to stdout
    torch.set_num_threads(int(threads))
    with np.load(columns, allow_pickle=False) as file:
        data = MDPDataset(
            file["observations"],
            file["actions"],
            file["rewards"],
            file["terminals"].astype(np.float32),
            file["timeouts"].astype(np.float32),
            action_space=ActionSpace.CONTINUOUS,
        )
    sizes = VectorEncoderFactory([int(width) for width in widths.split(",")])
    config = {
        "batch_size": int(batch),
        "actor_learning_rate": float(rate),
        "critic_learning_rate": float(rate),
        "actor_encoder_factory": sizes,
        "critic_encoder_factory": sizes,
    }
    if algorithm == "IQL":
        algo = IQLConfig(value_encoder_factory=sizes, **config).create(device="cpu:0")
    else:
        algo = CQLConfig(**config).create(device="cpu:0")
    algo.build_with_dataset(data)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "work":
            with FlopCounterMode(display=False) as counter:
                algo.update(data.sample_transition_batch(int(batch)))
            answer = [counter.get_total_flops(), count_parameters()]
            print(json.dumps(answer), file=answers, flush=True)
            continue
        sampling, updates = np.zeros(2), np.zeros(2)
        for _ in range(int(line)):
            begin = clocks()
            drawn = data.sample_transition_batch(int(batch))
            middle = clocks()
            algo.update(drawn)
            sampling, updates = sampling + middle - begin, updates + clocks() - middle
        print(json.dumps([*sampling, *updates]), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
