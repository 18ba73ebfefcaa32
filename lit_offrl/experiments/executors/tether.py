"""Begins a command that is to stop when its parent dies: ``python -m … PARENT_PID COMMAND …``.

On Linux the kernel then sends SIGTERM, on which fit saves; elsewhere the command outlives it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, *argv = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before
            sys.exit(128 + signal.SIGTERM)
    os.execv(argv[0], argv)
