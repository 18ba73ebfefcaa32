"""How long a job took, over its parts."""

import json
import os

from lit_offrl.jobs import parts as module
from lit_offrl.jobs.parts import Parts


def test_parts_add_up_and_an_end_that_nobody_saw_is_the_last_sign_of_life(folder, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    log = folder / "fit.log"
    parts = Parts(folder / "parts.json", (log, folder / "none"))
    assert (parts.seconds(), len(parts)) == (0, 0)
    parts.begin()
    now = 1010.0
    parts.end()
    now = 2000.0
    parts.begin()  # and then killed, with whoever watched, some time after writing to the log
    log.touch()
    os.utime(log, (2007.0, 2007.0))
    assert (parts.seconds(), len(parts)) == (17, 2)
    now = 3000.0
    parts.begin()
    now = 3001.0
    parts.end()
    assert json.loads((folder / "parts.json").read_text()) == [
        [1000, 1010],
        [2000, 2007],
        [3000, 3001],
    ]
    assert parts.seconds() == 18
