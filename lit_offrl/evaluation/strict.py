"""A wrapper that accepts the results of environments in all valid forms, and refuses invalid ones.

Environments of users' own return rewards as arrays of one number, flags as numpy's, observations as
lists; others still have the interface of the old gym. What can be meant in one way only is taken
so; anything else is one line that names the environment and the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import gymnasium
import numpy as np

from lit_offrl.common.errors import EvaluationError, LitOffRLError, reason
from lit_offrl.common.signals import Interrupted
from lit_offrl.common.user_code import place

_OLD_GYM = (
    "returns 4 values, as environments of the old gym did: return observation, reward, terminated,"
    " truncated and info"
)


class StrictEnv(gymnasium.Wrapper):
    """An environment whose ``step`` gives an array, a float, two bools and a mapping.

    Observations keep their type of number and have the shape of their space.

    Args:
        env: An environment of vectors.
        env_id: Name of the environment in messages.

    Raises:
        EvaluationError: by ``reset`` and ``step``, of what cannot be used, and of any error of the
            environment's own; the line names its file and line.
    """

    def __init__(self, env: gymnasium.Env, env_id: str) -> None:
        super().__init__(env)
        self._name = env_id
        self._shape = env.observation_space.shape
        self._steps = 0

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        self._steps = 0
        try:
            given = self.env.reset(**options)
        except (LitOffRLError, Interrupted):
            raise
        except (Exception, SystemExit) as error:  # whatever an environment may throw
            raise self._failed(error) from error
        if not isinstance(given, tuple) or len(given) != 2:
            raise self._wrong(
                "returns no (observation, info), as environments of the old gym did not: return"
                " both"
            )
        return self._observation(given[0]), self._info(given[1])

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take a step."""
        self._steps += 1
        try:
            given = self.env.step(action)
        except (LitOffRLError, Interrupted):
            raise
        except (Exception, SystemExit) as error:
            if "expected 5, got 4" in str(error):  # so says gymnasium's wrapper of the step limit
                raise self._wrong(_OLD_GYM) from error
            raise self._failed(error) from error
        size = len(given) if isinstance(given, tuple) else 0
        if size != 5:
            new = "does not return observation, reward, terminated, truncated and info"
            raise self._wrong(_OLD_GYM if size == 4 else new)
        observation, reward, terminated, truncated, info = given
        return (
            self._observation(observation),
            self._reward(reward),
            self._flag("terminated", terminated),
            self._flag("truncated", truncated),
            self._info(info),
        )

    def _observation(self, given: Any) -> np.ndarray:
        try:
            found = np.asarray(given)
            if found.dtype == object or not np.isfinite(found).all():
                raise ValueError
        except (TypeError, ValueError):
            raise self._wrong(
                f"gave the observation {_shown(given)}: give {self._shape} finite numbers"
            ) from None
        if found.shape != self._shape:
            raise self._wrong(
                f"gave an observation of shape {found.shape} where its space has {self._shape}:"
                " make the two agree"
            )
        return found

    def _reward(self, given: Any) -> float:
        number = _one_number(given)
        if number is None or not math.isfinite(number):
            raise self._wrong(f"gave the reward {_shown(given)}: give one finite number")
        return number

    def _flag(self, name: str, given: Any) -> bool:
        if type(given) is bool:
            return given
        number = _one_number(given)
        if number not in (0, 1):
            raise self._wrong(f"gave {name} as {_shown(given)}: give True or False")
        return bool(number)

    def _info(self, given: Any) -> dict[str, Any]:
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            raise self._wrong(f"gave the info {_shown(given)}: give a dictionary")
        return given if isinstance(given, dict) else dict(given)

    def _when(self) -> str:
        return f"at step {self._steps} of an episode" if self._steps else "at its reset"

    def _wrong(self, what: str) -> EvaluationError:
        return EvaluationError(f"Environment '{self._name}' {what} ({self._when()}).")

    def _failed(self, error: BaseException) -> EvaluationError:
        said = reason(error, named=True)
        return EvaluationError(
            f"Environment '{self._name}' failed {self._when()}: {said}{place(error)}."
        )


def _one_number(given: Any) -> float | None:
    """Return the one number that a value is, also as an array or a tensor; None if it is none."""
    if type(given) is float:
        return given
    if isinstance(given, list | tuple):
        given = np.asarray(given, object)
    try:
        plain = given.item() if hasattr(given, "item") else given
    except (TypeError, ValueError, RuntimeError):  # numpy's, and torch's, of several numbers
        return None
    return float(plain) if isinstance(plain, Real) else None


def _shown(given: Any) -> str:
    text = " ".join(repr(given).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
