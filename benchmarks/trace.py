"""How many files of the library one training step of DVF goes through, counted by a profiler.

Counted are calls of functions in ``lit_offrl`` between two batches of the training loader:
``training_step``, the optimiser step, the hooks of the standard callbacks and the fetching of a
batch. A switch is a call whose nearest caller in ``lit_offrl`` is in another file; frames of
PyTorch and Lightning in between do not count. The step is the second of a fit, in which nothing is
built, logged or saved.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lit_offrl
from lit_offrl.__main__ import main

_LIBRARY = str(Path(lit_offrl.__file__).parent) + "/"
_CONFIG = Path(__file__).parents[1] / "configs" / "dvf_pybullet.yaml"
_STEPS = 3
_SMALL = {"width": 16, "latents": 4, "num_samples": 2}
"""Sizes of tensors; blocks and sampling steps, on which the calls depend, are the paper's."""


@dataclass(frozen=True)
class TraceResult:
    """What one training step goes through.

    Attributes:
        files: Files of the library of which a function is called.
        switches: Calls from one of them into another.
        calls: All calls of the library's functions.
        by_file: Calls of each file's functions, most first.
    """

    files: int
    switches: int
    calls: int
    by_file: dict[str, int]


def run_trace(**options: Any) -> TraceResult:
    """Trace a step of DVF with ``configs/dvf_pybullet.yaml``, with tensors of a small size.

    Args:
        **options: Options of the model in place of the small ones.

    Raises:
        RuntimeError: The fit failed.
    """
    steps: list[list[tuple[str, str | None]]] = []
    before: Callable[..., Any] | None = sys.getprofile()

    def note(frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(_LIBRARY):
            return
        if frame.f_code.co_qualname == "TrainLoader.__iter__":  # a batch is fetched
            steps.append([])
        if steps:
            steps[-1].append((file, _caller(frame)))

    with tempfile.TemporaryDirectory() as folder:
        argv = ["fit", "--config", str(_CONFIG), "--data.init_args.batch_size", "8"]
        for name, value in (_SMALL | options).items():
            argv += [f"--model.init_args.{name}", str(value)]
        argv += ["--trainer.max_steps", str(_STEPS), "--trainer.accelerator", "cpu"]
        argv += ["--model.init_args.steps_per_call", "1"]
        argv += ["--trainer.limit_val_batches", "0", "--trainer.logger", "false"]
        argv += ["--evaluation.episodes", "0", "--checkpoint.dirpath", folder]
        sys.setprofile(note)
        try:
            code = main(argv)
        finally:
            sys.setprofile(before)
    if code:
        raise RuntimeError(f"the fit ended with exit code {code}")
    step = steps[2]  # Lightning fetches one batch ahead, before the first step
    by_file = Counter(file.removeprefix(_LIBRARY) for file, _ in step)
    switches = sum(file != caller for file, caller in step)
    return TraceResult(len(by_file), switches, len(step), dict(by_file.most_common()))


def _caller(frame: FrameType) -> str | None:
    """Return the file of the nearest caller in the library."""
    above = frame.f_back
    while above is not None:
        if above.f_code.co_filename.startswith(_LIBRARY):
            return above.f_code.co_filename
        above = above.f_back
    return None
