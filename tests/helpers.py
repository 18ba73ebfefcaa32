"""What tests of many steps or of several processes take, so that the suite stays short."""

import contextlib
import multiprocessing
import sys
import threading

import jaxtyping
from tqdm import tqdm


@contextlib.contextmanager
def unchecked():
    """Leave shapes unchecked: that would take half of the time of many small steps.

    Other tests of the same nets check them. Also a decorator.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def forked(function, *arguments, stderr):
    """Start a function in a process of its own that need not import what this one has.

    Args:
        function: its result is the process's exit code.
        *arguments: given to it.
        stderr: path or descriptor of the file that stands for the process's own.
    """

    def run():
        sys.stderr = open(stderr, "w")
        # the parent's is shared, and stays locked where a signal ends this process amid a line
        tqdm.set_lock(threading.RLock())
        sys.exit(function(*arguments))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process
