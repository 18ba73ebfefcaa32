"""Where to compute, as the user names it."""

from __future__ import annotations

CPU = "cpu"


def device(text: str) -> str:
    """Return the name of a device that can be used here; for argparse, ValueError if it cannot."""
    import torch  # else the help would wait for it

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(text) from error
    return text


device.__name__ = "device of this machine"  # argparse names the type in its message
