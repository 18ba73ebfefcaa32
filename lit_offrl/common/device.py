"""Where to compute, as the user names it."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def device(text: str) -> torch.device:
    """Return a device that can be used here; for argparse, ValueError if it cannot."""
    try:
        found = torch.device(text)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(text) from error
    return found


device.__name__ = "device of this machine"  # argparse names the type in its message
