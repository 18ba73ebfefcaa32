"""Numbers that no method can do anything with are refused as it is built, by the option's name."""

import inspect
import re
from typing import Annotated, Literal

import pytest

import lit_offrl.modules
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import SEEDS, lies_in, require_in
from lit_offrl.common.signatures import parameters_of
from lit_offrl.modules import IQLModule, LDCQStage1Module, LDCQStage2Module
from lit_offrl.modules.base import OfflineModule

DATA = {"observation_dim": 4, "action_dim": 2, "action_low": (-1.0,) * 2, "action_high": (1.0,) * 2}
SMALL = {"width": 8, "blocks": 1, "hidden": (8,), "num_samples": 2, "horizon": 3}
UNBOUND = {"guidance", "guide_scale", "lagrange", "omega", "target_entropy", "target_return"}
UNBOUND |= {"failure_reward", "threshold"}
"""Options that may be any finite number."""
METHODS = [
    kind
    for kind in vars(lit_offrl.modules).values()
    if isinstance(kind, type) and issubclass(kind, OfflineModule) and not inspect.isabstract(kind)
    if kind is not OfflineModule
]


def record(module):
    """What a later stage keeps of an earlier one."""
    return {
        "path": "earlier.ckpt",
        "sha256": None,
        "class_path": f"lit_offrl.modules.{type(module).__name__}",
        "hyper_parameters": dict(module.hparams),
        "spec": None,
        "mlflow": None,
    }


@pytest.fixture(scope="module")
def needed():
    """Options that must be given, by the method's name."""
    first = record(LDCQStage1Module(**DATA, width=8, horizon=3))
    second = record(LDCQStage2Module(**DATA, width=8, stage1=first))
    return {
        "LDCQStage2Module": {"stage1": first},
        "LDCQStage3Module": {"stage2": second},
        "ImageVAEModule": {"observation_dim": 3 * 8**2},
        "DiffuserModule": {"horizon": 8},  # halved at each level
        "DecisionDiffuserModule": {"horizon": 8},
    }


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_no_number_is_without_a_range(kind, needed):
    parameters = parameters_of(kind)
    given = DATA | SMALL | needed.get(kind.__name__, {})
    given = {name: value for name, value in given.items() if name in parameters}
    kind(**given)
    tried = 0
    for name, parameter in parameters.items():
        hint = re.sub(r"Annotated\[(.*), '.*'\]", r"\1", str(parameter.annotation))
        hint = hint.removesuffix(" | None")
        wrong = {"int": [-1], "float": [float("nan"), float("inf"), -2.0], "Sequence[int]": [[-1]]}
        for number in wrong.get(hint, []) if name not in DATA else []:
            if name in UNBOUND and number == -2.0:
                continue
            tried += 1
            with pytest.raises(ConfigError, match=name.removeprefix("priority_")):
                kind(**(given | {name: number}))
    assert tried >= 5


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "said"),
    [
        ("[0, 1)", (0, 0.5), (-0.1, 1, float("nan")), r"give a number in \[0, 1\)\."),
        ("(0, 1]", (0.1, 1), (0, 2), r"give a number in \(0, 1\]\."),
        ("[1, inf)", (1, 1e9), (0, -1), r"give at least 1\."),
        ("(0, inf)", (0.1,), (0, -1), r"give a number above 0\."),
        ("(-inf, inf)", (-5,), (float("inf"), float("nan")), r"give a finite number\."),
        (SEEDS, (0, 2**32 - 1), (-1, 2**32), r"give a number in \[0, 4294967295\]\."),
    ],
)
def test_intervals(interval, inside, outside, said):
    require_in(interval, given=inside[0], not_given=None)
    assert all(lies_in(interval, number) for number in inside)
    for number in outside:
        with pytest.raises(ConfigError, match=f"^rate is {number}: {said}$"):
            require_in(interval, given=inside[0], rate=number)


def test_an_interval_stays_where_a_subclass_restates_the_option():
    class Mine(IQLModule):
        """Has another default, and gives its base a value of its own."""

        def __init__(self, *args, beta: float = 1.0, trusted: float = 0.9, **kwargs) -> None:
            super().__init__(*args, beta=beta, expectile=trusted, **kwargs)

    assert Mine(4, 2).hparams.beta == 1.0
    for wrong in ({"beta": -1.0}, {"gamma": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Mine(4, 2, **wrong)
    with pytest.raises(ConfigError, match=r"expectile is 2\.0"):
        Mine(4, 2, trusted=2.0)


def test_options_of_a_policy_are_checked_by_their_annotations():
    class Mine(IQLModule):
        """Has options of acting."""

        def policy(
            self,
            how: Literal["mean", "sample"] | None = None,
            number: Annotated[int | None, "[1, inf)"] = None,
        ):
            return super().policy()

    module = Mine(4, 2)
    module.policy()
    module.policy("mean", number=3)
    for options, said in (
        ({"how": "sampel"}, r"^how is 'sampel'; choose mean or sample\. Did you mean 'sample'\?$"),
        ({"number": 0}, r"^number is 0: give at least 1\.$"),
    ):
        with pytest.raises(ConfigError, match=said):
            module.policy(**options)
