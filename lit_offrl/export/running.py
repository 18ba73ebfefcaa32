"""Acting by an exported policy, through onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.common.errors import ConfigError, EvaluationError, reason
from lit_offrl.common.extras import needed
from lit_offrl.common.policy import CheckedAct
from lit_offrl.export.facts import KEY, NEXT_STATE, NOISE, STATE, PolicyFacts

_FEW_LOGS = 3  # errors alone


class OnnxPolicy:
    """A policy in an ONNX file of ``export``, see ``load_onnx``; it holds the state between steps.

    Args:
        session: Session of the file in onnxruntime.
        facts: What the file says of itself.
        seed: Seed of the noise, with which the same observations have the same actions; or the
            generator that draws it.

    Attributes:
        facts: What the file says of itself.
    """

    def __init__(
        self, session: Any, facts: PolicyFacts, seed: int | np.random.Generator = 0
    ) -> None:
        self.facts = facts
        self._session, self._random = session, np.random.default_rng(seed)
        self._state: np.ndarray | None = None
        width = facts.inputs["observations"]
        self.act: Callable[[np.ndarray], np.ndarray] = CheckedAct(self._act, width)
        """Maps raw observations (E, o) to actions (E, a), float32."""

    def another(self) -> OnnxPolicy:
        """Return a policy with a memory of its own, and the same session and stream of noise."""
        return type(self)(self._session, self.facts, self._random)

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Begin new episodes where ``mask`` (E,) is True, everywhere when it is None."""
        if mask is None or self._state is None or len(self._state) != len(mask):
            self._state = None
        else:
            self._state[np.asarray(mask, bool)] = 0.0

    def decide(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the graph once: float32 arrays (E, size) of ``facts.inputs``, to ``facts.outputs``.

        Raises:
            EvaluationError: An input is missing, or of another shape.
        """
        feed = {name: np.asarray(value, np.float32) for name, value in inputs.items()}
        try:
            return dict(zip(self.facts.outputs, self._session.run(None, feed), strict=True))
        except Exception as error:  # onnxruntime has its own kinds
            raise EvaluationError(
                f"the exported policy takes {self.facts.inputs} (E rows of so many numbers):"
                f" {reason(error)}"
            ) from error

    def _act(self, observations: np.ndarray) -> np.ndarray:
        number, sizes = len(observations), self.facts.inputs
        inputs = {"observations": observations, **self._told(number)}
        if NOISE in sizes:
            inputs[NOISE] = self.draw(number)
        if STATE in sizes:
            if self._state is None or len(self._state) != number:
                self._state = np.zeros((number, sizes[STATE]), np.float32)
            inputs[STATE] = self._state
        outputs = self.decide(**inputs)
        if STATE in sizes:
            self._state = outputs[NEXT_STATE].copy()  # which a reset writes to
        return outputs["actions"]

    def draw(self, number: int) -> np.ndarray:
        """Draw the noise (E, n), float32, of the next decision of E environments."""
        return self._random.standard_normal((number, self.facts.inputs[NOISE]), np.float32)

    def _told(self, number: int) -> dict[str, np.ndarray]:
        return {}


class OnnxGoalPolicy(OnnxPolicy):
    """An exported policy that takes goals, ``GoalPolicy``."""

    _goals: np.ndarray | None = None

    def aim(self, goals: np.ndarray | None) -> None:
        """Take the goals (E, g) of the episodes under way; None where they are unknown."""
        self._goals = goals

    def _told(self, number: int) -> dict[str, np.ndarray]:
        if self._goals is None:
            raise EvaluationError(
                "This policy needs a goal, and the environment names no goal: export it with the"
                " policy's option 'goal'."
            )
        shape = (number, self.facts.inputs["goals"])
        return {"goals": np.broadcast_to(self._goals, shape).astype(np.float32)}


class OnnxRewardPolicy(OnnxPolicy):
    """An exported policy that takes the rewards of its steps, ``RewardPolicy``."""

    _earned: np.ndarray | None = None

    def earn(self, rewards: np.ndarray) -> None:
        """Take the rewards (E,) of the step just taken."""
        self._earned = rewards

    def _told(self, number: int) -> dict[str, np.ndarray]:
        earned, self._earned = self._earned, None
        if earned is None or len(earned) != number:
            earned = np.zeros(number, np.float32)
        return {"rewards": np.asarray(earned, np.float32)[:, None]}


def load_onnx(path: str | Path, seed: int = 0, threads: int = 1) -> OnnxPolicy:
    """Load an exported policy, ready to act.

    Args:
        path: An ``.onnx`` file of ``export``.
        seed: Seed of its noise.
        threads: Number of threads that compute, at least 1.

    Raises:
        ConfigError: onnxruntime is not installed, or the file is missing, broken or foreign.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such exported policy; make one by 'lit-offrl export'.")
    onnxruntime = needed("onnxruntime", "export", "an exported policy")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FEW_LOGS
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own kinds
        raise ConfigError(f"{path}: not a readable ONNX file ({reason(error)}).") from error
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise ConfigError(f"{path}: no policy of lit-offrl: export one by 'lit-offrl export'.")
    facts = PolicyFacts.from_json(text, path)
    _require_signature(path, session, facts)
    kinds: Mapping[str, type[OnnxPolicy]] = {"goals": OnnxGoalPolicy, "rewards": OnnxRewardPolicy}
    kind = next((kinds[name] for name in facts.inputs if name in kinds), OnnxPolicy)
    return kind(session, facts, seed)


def _require_signature(path: Path, session: Any, facts: PolicyFacts) -> None:
    """Refuse a graph that does not take and give what its facts say.

    Raises:
        ConfigError: It takes or gives something else.
    """
    for said, ports in (
        (facts.inputs, session.get_inputs()),
        (facts.outputs, session.get_outputs()),
    ):
        found = {port.name: port.shape[1] for port in ports if len(port.shape) == 2}
        if found != dict(said) or not {"observations", "actions"} & {*said}:
            raise ConfigError(f"{path}: its graph has {found} where its facts have {dict(said)}.")
