"""Speed, measured here and now: ``python -m benchmarks NAME``; ``--help`` lists the names.

Each benchmark prints ratios between numbers of one run on one machine, since only those mean the
same elsewhere. All but ``step``, which has the machine's own matrix products beside it,
compare with the usual way. ``coverage`` measures no speed: it simulates how often intervals hold.
"""

import os

# Before torch is loaded: its profiler otherwise reports its own start and stop on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
