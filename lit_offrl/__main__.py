"""``lit-offrl``: find the verb, and only then import what it needs.

The help must answer at once and torch takes seconds, so nothing heavy is imported here.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from lit_offrl import __version__
from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError, LitOffRLError, nearest
from lit_offrl.common.troubleshooting import pointer
from lit_offrl.common.user_code import take_imports

TRAINER_VERBS = {
    "fit": "train a method, or go on from a checkpoint (--ckpt_path)",
    "validate": "losses of a checkpoint on the held-out episodes",
    "test": "losses of a checkpoint on the held-out episodes, without touching a fit's curves",
    "predict": "write the actions that a checkpoint takes in a dataset's states to a file",
}
COMMANDS = {
    "evaluate": "roll a checkpoint's policy out in its environment and score it",
    "serve": "answer observations with a checkpoint's actions over HTTP",
    "compare": "scores of runs by method and dataset, with intervals and protocol",
    "claims": "which claims of the papers hold in evaluated runs, dataset by dataset",
    "export": "write a checkpoint's policy as a file that a robot runs without this library",
    "ope": "value policies that were not trained on from logged data alone",
    "figures": "draw a paper's figure, with its numbers, from a checkpoint",
    "configs": "list, show and copy the configs that come with the library",
    "docs": "list and print the pages of the documentation",
    "datasets": "list, describe, check and download datasets",
    "collect": "make a dataset from an environment",
    "sweep": "train and evaluate a grid of methods, datasets and seeds",
    "pipeline": "train stages that take each other's checkpoints, and evaluate",
    "hub": "push a policy to Hugging Face's hub with a model card, or pull one",
    "models": "MLflow's registered models: list, register, alias",
    "mlflow": "send to MLflow what it did not get while a run trained (sync)",
    "online": "train on steps taken in the environment: in rounds, or from a checkpoint",
}


def usage() -> str:
    """Return the help: every verb with one line."""
    verbs = {**TRAINER_VERBS, **COMMANDS}
    lines = "\n".join(f"  {verb:<10}{line}" for verb, line in verbs.items())
    return (
        "usage: lit-offrl VERB [options]        lit-offrl VERB --help for a verb's options\n\n"
        "Offline reinforcement learning on PyTorch Lightning.\n\n"
        f"verbs:\n{lines}\n\n"
        "every verb takes --import MODULE: a file of your own, with the method that a checkpoint\n"
        "is of; no file is imported because a checkpoint names it\n\n"
        "for example:\n"
        "  lit-offrl fit --config dvf_pybullet --config quick\n"
        "  lit-offrl fit --config dvf_pybullet --print_config"
    )


def dispatch(argv: Sequence[str]) -> int:
    """Run the verb that ``argv`` begins with and return its exit code.

    Raises:
        LitOffRLError: the user can put it right.
    """
    verb, *rest = take_imports(argv) or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(usage())
        return 0
    if verb == "--version":
        print(f"lit-offrl {__version__}")
        return 0
    if verb in COMMANDS:
        return int(_import(f"lit_offrl.commands.{verb}").main(rest) or 0)
    if verb in TRAINER_VERBS:
        return int(_import("lit_offrl.cli.main").main([verb, *rest]) or 0)
    known = [*TRAINER_VERBS, *COMMANDS]
    hint = nearest(verb, known) or f" It knows {', '.join(known)}."
    raise ConfigError(f"there is no verb '{verb}'.{hint}")


def _import(name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    with signals.abruptly():
        return importlib.import_module(name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, hear signals, and turn what goes wrong into one line and an exit code.

    Args:
        argv: The verb and its options. By default they are those of the process, whose exit code
            then follows.

    Returns:
        0; 2 for a mistake of the user's; 3 for training that met a number that is not finite; 128
        more than the number of the signal (SIGTERM, SIGINT or SIGUSR1) that stopped it.
    """
    process = argv is None
    if process and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # letters that the terminal's encoding lacks
    with signals.listening(process=process):
        code = _run(sys.argv[1:] if argv is None else argv)
        return signals.settle(code) if process else code


def _run(argv: Sequence[str]) -> int:
    try:
        code = dispatch(argv)
    except signals.Interrupted as stop:
        print(f"lit-offrl: {stop}", file=sys.stderr)
        code = 128 + stop.number
    except LitOffRLError as error:
        print(f"lit-offrl: error: {_line(error)}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:  # where another's handler was put in the place of ours
        print("lit-offrl: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except BaseException:
        if not signals.received():
            raise
        # An extension module may turn the signal's exception into one of its own.
        print(f"lit-offrl: {signals.Interrupted(signals.received())}", file=sys.stderr)
        code = 128 + signals.received()
    if signals.received() and not signals.is_child():
        signals.end_within()
        return 128 + signals.received()
    return code


def _line(error: LitOffRLError) -> str:
    from lit_offrl.tracking.store import redacted  # too heavy for --help

    line = redacted(" ".join(str(error).split()))
    return line + pointer(line)


if __name__ == "__main__":
    sys.exit(main())
