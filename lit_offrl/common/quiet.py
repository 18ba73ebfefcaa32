"""What a run prints: our own lines once, and none of Lightning's chatter."""

from __future__ import annotations

import logging
import sys
import warnings

from lightning_utilities.core.rank_zero import rank_zero_only
from tqdm import tqdm

from lit_offrl.tracking.store import redacted

_NOISE = (
    ".*Checkpoint directory .* exists and is not empty.*",  # that of a resumed run
    ".*smaller than the logging interval.*",  # our logging does not look at epochs
    ".*module\\(s\\) in eval mode at the start of training.*",  # averaged networks, on purpose
    ".*You called `self.log.* but have no logger configured.*",  # validate prints a table
    ".*callbacks used to create the checkpoint need to be provided.*",  # predict needs no curves
    ".*LeafSpec.*deprecated.*",  # Lightning on torch 2.13
)


def quiet() -> None:
    """Keep what Lightning says that tells nothing about the run off the screen.

    The command line calls it; a script or a notebook that makes its own Trainer may.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # a requested profiler shows its table this way
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


def say(line: str) -> None:
    """Print a line to the user, only in the first process, above a running progress bar."""
    if getattr(rank_zero_only, "rank", 0):  # which Lightning sets, if it is imported
        return
    with tqdm.external_write_mode(file=sys.stdout):
        print(f"lit-offrl: {redacted(line)}")
