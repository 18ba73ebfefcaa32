"""How long a job took, over its processes."""

import json
import os

from lit_offrl.experiments import walltime as module
from lit_offrl.experiments.walltime import WallTime


def test_times_add_up_and_an_end_that_nobody_recorded_is_the_last_sign_of_life(folder, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    log = folder / "fit.log"
    times = WallTime(folder / "parts.json", (log, folder / "none"))
    assert (times.seconds(), len(times.intervals())) == (0, 0)
    times.begin()
    now = 1010.0
    times.end()
    now = 2000.0
    times.begin()  # and then killed with its parent, some time after writing to the log
    log.touch()
    os.utime(log, (2007.0, 2007.0))
    assert (times.seconds(), len(times.intervals())) == (17, 2)
    now = 3000.0
    times.begin()
    now = 3001.0
    times.end()
    assert json.loads((folder / "parts.json").read_text()) == [
        [1000, 1010],
        [2000, 2007],
        [3000, 3001],
    ]
    assert times.seconds() == 18
