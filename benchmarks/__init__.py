"""Speed, measured here and now: ``python -m benchmarks NAME``; ``--help`` lists the names.

Each benchmark prints ratios between numbers of one run on one machine, since only those mean the
same elsewhere. ``step`` and the steps and decisions of ``acd`` have the machine's own matrix
products beside them, all others the usual way. ``coverage`` measures no speed: it simulates how
often intervals hold.
"""

import os

# Before torch is loaded: its profiler otherwise reports its own start and stop on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
