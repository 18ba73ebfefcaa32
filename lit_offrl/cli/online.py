"""A fit that goes on from a checkpoint with steps of its own in the environment."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lit_offrl.callbacks.own_steps import Hear, OnlineEvaluation, OwnSteps, OwnStepsOptions
from lit_offrl.cli.main import OfflineCLI
from lit_offrl.common.quiet import say


class OnlineCLI(OfflineCLI):
    """The verb ``fit``, from a checkpoint, with own steps and scores by their number."""

    evaluation = OnlineEvaluation
    own_steps: OwnStepsOptions
    heard: Hear

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Keep rates as they are, unless the user's own option says otherwise."""
        super().parse_arguments(parser, args)
        model = self.config[self.verb].model.init_args
        if model.get("decay") == "cosine" and not self._given.give("model.init_args.decay"):
            model.decay = "constant"
            say(
                "model.init_args.decay is constant, as the rate that the checkpoint's run decayed "
                "would not train any more; --model.init_args.decay cosine lets it fall to 0 at the "
                "last own step"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Put the callback of own steps beside the others."""
        evaluation: OnlineEvaluation = self._get(self.config_init, "evaluation")
        evaluation.pace, evaluation.heard = self.own_steps.pace, self.heard
        self.trainer_defaults["callbacks"].append(OwnSteps(self.own_steps))
        return super().instantiate_trainer(**kwargs)


def online_cli(options: OwnStepsOptions, heard: Hear) -> type[OnlineCLI]:
    """Return the kind of command line for one run.

    Args:
        options: How it takes own steps.
        heard: Called with each score.
    """

    class Run(OnlineCLI):
        same_run = not options.begins
        own_steps = options

    Run.heard = staticmethod(heard)
    return Run
