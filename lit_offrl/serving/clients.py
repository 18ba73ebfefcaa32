"""One trained policy for many clients, each with a memory of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lit_offrl.common.errors import EvaluationError, LitOffRLError
from lit_offrl.common.policy import GoalPolicy, Policy, RewardPolicy
from lit_offrl.export.facts import STATE
from lit_offrl.export.running import OnnxPolicy
from lit_offrl.modules.policies import NetworkPolicy


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """What a client tells of its E environments, or robots, and wants actions for.

    Attributes:
        observations: Raw observations (E, o), float32.
        client: Name of the client, if it has one.
        reset: Whether episodes begin here, for all E or for each, (E,).
        goals: Goals (E, g) of the episodes, where the policy goes to any.
        rewards: Rewards (E,) of the client's step before, where the policy counts them.
    """

    observations: np.ndarray
    client: str | None = None
    reset: bool | np.ndarray = False
    goals: np.ndarray | None = None
    rewards: np.ndarray | None = None


class StepRefusal(LitOffRLError):
    """A step that cannot be answered; the line says what to send instead.

    Args:
        line: The message.
        status: What HTTP calls it.
    """

    def __init__(self, line: str, status: int = 400) -> None:
        super().__init__(line)
        self.status = status


@dataclass
class _Memory:
    policy: Policy
    rows: int
    used: float


class Clients:
    """Acts for clients by one trained policy.

    A memoryless policy acts at once on the rows of all steps that are given together. Of a policy
    that remembers, each client has one of its own, which shares nothing with the others' but the
    weights; a client begins by a reset, and is forgotten when it has been idle for too long.

    Args:
        make: Makes a policy; called for each client of one that remembers.
        most: Number of clients that are remembered, at least 1.
        idle_seconds: Time after which a client that has not been heard of is forgotten.
        clock: The time in seconds.
    """

    def __init__(
        self,
        make: Callable[[], Policy],
        most: int = 64,
        idle_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._most, self._idle, self._clock = make, most, idle_seconds, clock
        self._shared = make()
        self._memories: dict[str, _Memory] = {}  # the one that was used last stands last
        self.remembers = not _is_memoryless(self._shared)
        """Whether what the policy does depends on earlier steps."""
        self.takes_goals = isinstance(self._shared, GoalPolicy)
        """Whether the policy may be given goals."""
        self.takes_rewards = isinstance(self._shared, RewardPolicy)
        """Whether the policy must be told its rewards."""

    def __len__(self) -> int:
        return len(self._memories)

    def act(self, steps: Sequence[Step]) -> list[np.ndarray | LitOffRLError]:
        """Return actions (E, a), float32, for each step, or why it has none.

        A step that is refused changes nothing. Where the policy itself fails at a step, its client
        is forgotten, as the policy's memory may be anything.
        """
        if self.remembers:
            return [self._remembering(step) for step in steps]
        ends = np.cumsum([len(step.observations) for step in steps])
        try:
            rows = np.concatenate([step.observations for step in steps])
            parts = np.split(self._acted(self._shared, rows), ends[:-1])
        except LitOffRLError as error:
            return [error] * len(steps)
        return [part if np.isfinite(part).all() else _not_finite() for part in parts]

    def _remembering(self, step: Step) -> np.ndarray | LitOffRLError:
        now, rows = self._clock(), len(step.observations)
        for name in [n for n, each in self._memories.items() if now - each.used > self._idle]:
            del self._memories[name]
        try:
            memory, begun = self._memory_for(step, now)
        except StepRefusal as refusal:
            return refusal
        assert step.client is not None  # _memory_for saw to it
        self._memories.pop(step.client, None)
        try:
            anew, policy = bool(begun.all()), memory.policy
            if isinstance(policy, RewardPolicy) and not anew and step.rewards is not None:
                policy.earn(step.rewards)
            if begun.any():
                policy.reset(None if anew else begun)
            if isinstance(policy, GoalPolicy) and (anew or step.goals is not None):
                policy.aim(step.goals)
            actions = self._acted(policy, step.observations)
            if not np.isfinite(actions).all():
                return _not_finite()
        except LitOffRLError as error:
            return error
        memory.rows, memory.used = rows, now
        self._memories[step.client] = memory
        return actions

    def _memory_for(self, step: Step, now: float) -> tuple[_Memory, np.ndarray]:
        """Return a client's memory, and where its episodes begin, (E,).

        Raises:
            StepRefusal: The step cannot follow the client's step before.
        """
        rows = len(step.observations)
        begun = np.full(rows, step.reset, bool)
        if step.client is None:
            raise StepRefusal("this policy remembers earlier steps: give a 'client', a name.")
        memory = self._memories.get(step.client)
        if memory is None:
            if not begun.all():
                raise StepRefusal(
                    f"client '{step.client}' is not known, as it is new or was idle for more than "
                    f'{self._idle:g} s: begin with "reset": true.',
                    409,
                )
            if len(self._memories) >= self._most:
                raise StepRefusal(
                    f"{self._most} clients are served already: try again when one has been idle "
                    f"for {self._idle:g} s, or start the server with more --max_clients.",
                    503,
                )
            return _Memory(self._make(), rows, now), begun
        if memory.rows != rows and not begun.all():
            raise StepRefusal(
                f"'observations' has {rows} rows, and client '{step.client}' had {memory.rows}: "
                'give as many, or begin anew with "reset": true.',
                409,
            )
        if self.takes_rewards and step.rewards is None and not begun.all():
            raise StepRefusal("this policy counts rewards: give 'rewards', those of the last step.")
        return memory, begun

    def _acted(self, policy: Policy, observations: np.ndarray) -> np.ndarray:
        actions = np.asarray(policy.act(observations), np.float32)
        if actions.ndim != 2 or len(actions) != len(observations):
            raise EvaluationError(
                f"the policy gave actions of shape {actions.shape} for {len(observations)} rows."
            )
        return actions


def _is_memoryless(policy: Policy) -> bool:
    """Whether a policy's actions follow from the observations alone, as far as is known."""
    if isinstance(policy, OnnxPolicy):
        told = {STATE, "goals", "rewards"} & {*policy.facts.inputs}
        return not told
    return isinstance(policy, NetworkPolicy)


def _not_finite() -> EvaluationError:
    return EvaluationError("the policy's action is not finite: its input is out of range.")
