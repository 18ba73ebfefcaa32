"""Speed, measured here and now: ``python -m benchmarks [loader|step|value]``.

Each benchmark prints ratios between numbers of one run on one machine, since only those mean the
same elsewhere. ``loader`` and ``value`` compare with the usual way, ``step`` with the machine's own
matrix products.
"""

import os

# Before torch is loaded: its profiler otherwise reports its own start and stop on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
