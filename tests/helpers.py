"""What tests of many steps or of several processes take, so that the suite stays short."""

import contextlib
import multiprocessing
import sys
import threading

import jaxtyping
import numpy as np
import torch
from tqdm import tqdm

from lit_offrl.datasets.views import TransitionBatch

# An exported policy and the library's own sum in other orders. On small networks, their actions
# differ by up to 1.5e-5; a wrong term of a decision changes actions by far more than this.
EXPORT_ROUNDING = 5e-5


@contextlib.contextmanager
def unchecked():
    """Leave shapes unchecked: that would take half of the time of many small steps.

    Other tests of the same nets check them. Also a decorator.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def forked(function, *arguments, stderr):
    """Start a function in a process of its own that need not import what this one has.

    Args:
        function: its result is the process's exit code.
        *arguments: given to it.
        stderr: path or descriptor of the file that stands for the process's own.
    """

    def run():
        sys.stderr = open(stderr, "w")
        # the parent's is shared, and stays locked where a signal ends this process amid a line
        tqdm.set_lock(threading.RLock())
        sys.exit(function(*arguments))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def made_up_transitions(low, high, rows=7, *, seed=3, next_actions=False):
    """Draw a batch of observations (rows, 3) and actions within bounds, every third row terminal.

    Tests work methods' losses out on it again, in NumPy.
    """
    random, size = np.random.default_rng(seed), (rows, len(low))
    columns = {
        "observations": random.normal(size=(rows, 3)),
        "actions": random.uniform(low, high, size),
        "rewards": random.normal(size=rows),
        "next_observations": random.normal(size=(rows, 3)),
    }
    if next_actions:
        columns["next_actions"] = random.uniform(low, high, size)
    tensors = {name: torch.tensor(column).float() for name, column in columns.items()}
    return TransitionBatch(**tensors, terminals=torch.arange(rows) % 3 == 0)


def acts_by_tanh(net, states, low, high):
    """What a network of ReLUs does whose output is squashed into the bounds, in NumPy."""
    layers = [layer for layer in net.net if isinstance(layer, torch.nn.Linear)]
    for i, layer in enumerate(layers):
        states = states @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        states = np.maximum(states, 0) if i < len(layers) - 1 else states
    return (high + low) / 2 + (high - low) / 2 * np.tanh(states)
