"""A thread that sends to MLflow, so that training never waits for it."""

from __future__ import annotations

import threading
import time
from typing import Any

from lit_offrl.common import signals
from lit_offrl.common.errors import reason, root
from lit_offrl.common.quiet import say
from lit_offrl.tracking.outbox import Outbox
from lit_offrl.tracking.sending import Delivery
from lit_offrl.tracking.store import redacted

_EVERY_SECONDS = 5.0
_SHARE = 20  # of the time the thread works one part in so many
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries of a store that fails
_LEAST_SPEED = 1e6  # bytes a second of a file, before the store counts as stalled
STOPPED_SECONDS = 3.0
"""For a store that does not answer once a signal has ended the fit."""


class Sender:
    """Takes what a run logs and sends it in a thread of its own, every few seconds.

    A store that does not take it is tried again after 1, 2, 4, … and at most 30 seconds; a line
    says when it fails first, and one when it is back.

    Args:
        client: MLflow's.
        tracking_uri: of the store.
        run_id: of the run.
        resumed: whether the run has something already, which must not be sent twice.
    """

    def __init__(self, client: Any, tracking_uri: str, run_id: str, *, resumed: bool) -> None:
        self._where = tracking_uri
        self._outbox = Outbox()
        self._delivery = Delivery(client, tracking_uri, run_id, self._outbox, ask=resumed)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._ending = False
        self._over = False
        self._failures = 0
        self._taken = 0.0  # seconds of the last sending
        self._limit = 0.0
        self._deadline = 0.0  # of the call at hand, once the run has ended

    @property
    def outbox(self) -> Outbox:
        """What waits to be sent, to be added to; the first use starts the thread."""
        if self._thread.ident is None:
            self._thread.start()
        return self._outbox

    def end(self, status: str, limit: float) -> Outbox:
        """Send what is left and the run's status; return what could not be sent.

        A store that fails gets one more try. One that works gets all the time that it takes, as
        long as each call comes back within ``limit`` seconds, or a file at a megabyte a second. No
        more can be logged afterwards.

        Args:
            status: ``FINISHED``, ``FAILED`` or ``KILLED``.
            limit: seconds.
        """
        self._limit = limit
        self._deadline = time.monotonic() + limit
        self.outbox.status, self.outbox.ended = status, int(time.time() * 1000)
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        try:
            while self._thread.is_alive() and time.monotonic() < self._deadline:
                self._thread.join(0.05)
                if signals.received() and self._limit > STOPPED_SECONDS:
                    self._limit = STOPPED_SECONDS
                    self._deadline = min(self._deadline, time.monotonic() + STOPPED_SECONDS)
        finally:
            self._over = True  # a thread that is still in a call ends with it
        return self._outbox.copy()

    def left(self) -> Outbox:
        """Return what has yet to be sent."""
        return self._outbox.copy()

    # ---- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while not self._over:
            with self._changed:
                self._changed.wait_for(lambda: self._ending, pause)
                ending = self._ending
            self._try(ending)
            if ending:
                return
            pause = max(_EVERY_SECONDS, _SHARE * self._taken)
            if self._failures:
                pause = min(_FIRST_PAUSE * 2.0 ** (self._failures - 1), _LONGEST_PAUSE)

    def _try(self, ending: bool) -> None:
        begun = time.monotonic()
        try:
            self._delivery.send(self._begin_call, end=ending)
        except Exception as error:  # whatever a store's driver throws: training is worth more
            self._delivery.doubt()
            self._failures = min(self._failures + 1, 20)
            if self._failures == 1 and not (ending or self._over):
                say(
                    f"MLflow at {self._where} does not take what is logged"
                    f" ({redacted(reason(root(error)))}); training goes on, and it is sent later."
                )
            return
        self._taken = time.monotonic() - begun
        if self._failures:
            self._failures = 0
            say(f"MLflow at {self._where} is back, and has got all that was logged meanwhile.")

    def _begin_call(self, size: int) -> None:
        if self._over:
            raise TimeoutError("the run is over")
        self._deadline = time.monotonic() + self._limit + size / _LEAST_SPEED
