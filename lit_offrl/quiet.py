"""Lightning without its chatter."""

from __future__ import annotations

import logging
import warnings

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
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
