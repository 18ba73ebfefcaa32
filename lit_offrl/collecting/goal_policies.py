"""Policies from files that walk an ant in a given direction: an MLP as ``.npz``, or a checkpoint.

The ``.npz`` has the layers ``w0`` (29, h), ``b0`` (h,), ``w1``, ``b1``, … in that order; a row of
observations is multiplied from the left (PyTorch's weights must be transposed). The last layer
gives the mean (8,), or mean and log σ (16,). Optional:

    log_std                               (8,)   log σ where it depends on nothing
    observation_mean, observation_std     (29,)  taken off, and divided by, before the first layer
    activation                            text   between the layers: relu (default), tanh or elu

The action is tanh(mean + σ · normal); without a log σ it is tanh(mean).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lit_offrl.collecting.base import load_fitting
from lit_offrl.common.errors import ConfigError, LitOffRLError, first_line, nearest
from lit_offrl.common.policy import Policy
from lit_offrl.datasets.npz import UnreadableError, read_npz

OBSERVATION, ACTION = 29, 8  # 27 of the ant without x and y, and the direction (2,); its torques
ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}
_LOG_STD = (-20.0, 2.0)  # bounds usual for soft actor-critic, lest an odd state give σ = inf
_OPTIONAL = ("log_std", "observation_mean", "observation_std", "activation")


def load_goal_policy(path: Path, seed: int) -> Policy:
    """Read a policy from (E, 29) to (E, 8); ``seed`` is of the actions that an ``.npz`` draws.

    A checkpoint acts as in evaluation, which for most methods means without noise.

    Raises:
        ConfigError: the file is missing, broken or of another size; one line names it and the key.
    """
    if not path.is_file():
        raise ConfigError(f"--policy {path}: no such file: give an .npz of weights or a .ckpt.")
    if path.suffix == ".npz":
        try:
            return MLPPolicy(read_npz(path), str(path), seed)
        except UnreadableError as error:
            raise ConfigError(f"--policy {path}: {error}: write it with numpy.savez.") from error
    advice = f": give one trained on the ant with a direction, from {OBSERVATION} to {ACTION}."
    module = load_fitting(path, (OBSERVATION, ACTION), "--policy ", advice)
    policy = module.policy()
    try:
        shape = policy.act(np.zeros((2, OBSERVATION), np.float32)).shape
    except LitOffRLError:
        raise
    except (RuntimeError, ValueError) as error:
        first = first_line(error)
        raise ConfigError(f"--policy {path}: takes no rows of {OBSERVATION}: {first}.") from error
    if shape != (2, ACTION):
        raise ConfigError(f"--policy {path}: gives actions {shape} for 2 rows: (2, {ACTION}) fit.")
    return policy


class MLPPolicy:
    """An MLP of an ``.npz``, with a tanh on its actions, for E ants at once.

    Raises:
        ConfigError: a key is missing, unknown, of a wrong shape, or holds no finite numbers.
    """

    def __init__(self, arrays: dict[str, np.ndarray], where: str, seed: int) -> None:
        self._where = where
        self._random = np.random.default_rng(seed)
        arrays = dict(arrays)
        name = str(arrays.pop("activation", np.array("relu")))
        if name not in ACTIVATIONS:
            raise self._wrong("activation", f"is '{name}': use one of {', '.join(ACTIVATIONS)}")
        self._activation = ACTIVATIONS[name]
        known = (*_OPTIONAL, *(f"{kind}{n}" for n in range(len(arrays)) for kind in "wb"))
        for key, values in arrays.items():
            if key not in known:
                raise self._wrong(key, f"is not known.{nearest(key, known)} Use w0, b0, w1, …")
            if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
                raise self._wrong(key, "has values that are no finite numbers: export it anew")
        self._layers = self._read_layers(arrays)
        outputs = len(self._layers[-1][1])
        if outputs not in (ACTION, 2 * ACTION):
            raise self._wrong(
                f"w{len(self._layers) - 1}",
                f"has {outputs} outputs: the last layer needs {ACTION} (mean) or {2 * ACTION}"
                " (mean, log σ)",
            )
        self._log_std = self._vector(arrays, "log_std", ACTION)
        if self._log_std is not None and outputs != ACTION:
            raise self._wrong(
                "log_std", "stands beside a last layer that gives log σ: leave it out"
            )
        mean = self._vector(arrays, "observation_mean", OBSERVATION)
        std = self._vector(arrays, "observation_std", OBSERVATION)
        self._mean = np.float32(0) if mean is None else mean
        self._std = np.float32(1) if std is None else std
        if (self._std <= 0).any():
            raise self._wrong("observation_std", "has values that are not above 0: export it anew")

    def _wrong(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"--policy {self._where}: '{key}' {what}.")

    def _read_layers(self, arrays: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        numbers = [int(key[1:]) for key in arrays if key not in _OPTIONAL]
        layers, inputs = [], OBSERVATION
        for n in range(max(numbers, default=0) + 1):
            for key in (f"w{n}", f"b{n}"):
                if key not in arrays:
                    raise self._wrong(key, "is missing: the layers are w0, b0, w1, b1, …")
            weights, biases = arrays[f"w{n}"], arrays[f"b{n}"]
            if weights.ndim != 2 or weights.shape[0] != inputs or weights.shape[1] == 0:
                shape = f"has shape {weights.shape}, where ({inputs}, outputs) is needed"
                turned = weights.ndim == 2 and weights.shape[1] == inputs
                raise self._wrong(f"w{n}", shape + (": transpose it" if turned else ""))
            if biases.shape != weights.shape[1:]:
                raise self._wrong(f"b{n}", f"has shape {biases.shape}, not {weights.shape[1:]}")
            layers.append((weights.astype(np.float32), biases.astype(np.float32)))
            inputs = len(biases)
        return layers

    def _vector(self, arrays: dict[str, np.ndarray], key: str, size: int) -> np.ndarray | None:
        values = arrays.get(key)
        if values is not None and values.shape != (size,):
            raise self._wrong(key, f"has shape {values.shape}, where ({size},) is needed")
        return None if values is None else values.astype(np.float32)

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Nothing lasts between steps."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Map observations (E, 29) to actions (E, 8), float32, in ±1."""
        x = (observations.astype(np.float32) - self._mean) / self._std
        for weights, biases in self._layers[:-1]:
            x = self._activation(x @ weights + biases)
        weights, biases = self._layers[-1]
        x = x @ weights + biases
        mean, log_std = x[:, :ACTION], x[:, ACTION:]
        if self._log_std is not None:
            log_std = np.broadcast_to(self._log_std, mean.shape)
        if log_std.size:
            normal = self._random.standard_normal(mean.shape, np.float32)
            mean = mean + np.exp(np.clip(log_std, *_LOG_STD)) * normal
        return np.tanh(mean)
