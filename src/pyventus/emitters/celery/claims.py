"""What a ledger says of the handlers that one message is for."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pyventus.emission import now
from pyventus.emitters.celery.patience import insist
from pyventus.errors import LeaseLost, WorkerLost, describe_error
from pyventus.ledger.base import Claim, Key, Ledger, Row, Settled
from pyventus.running import Result

if TYPE_CHECKING:
    from pyventus.dead_letters.base import Reason
    from pyventus.emission import Emission
    from pyventus.handlers import EventHandler
    from pyventus.ledger.leases import Leases

logger = logging.getLogger("pyventus")

MAX_ERROR = 500
MAX_TRACEBACK = 3_000


@dataclass(frozen=True, slots=True)
class Owed:
    """What follows from a run: the next one, or else a dead letter.

    Attributes:
        due: when it is to be run again; None: never.
        reason: of the dead letter.
        error: of the dead letter.
        traceback: of the dead letter.
    """

    due: datetime | None = None
    reason: Reason = "failed"
    error: str = ""
    traceback: str = ""

    @classmethod
    def of(cls, result: Result) -> Owed:
        """What follows from a failure."""
        error = result.error
        assert error is not None, "nothing follows from a success"
        if result.again is not None:
            return cls(due=now() + timedelta(seconds=result.again))
        return cls(
            reason="lost" if isinstance(error, WorkerLost) else "failed",
            error=describe_error(error),
            traceback="".join(traceback.format_exception(error)),
        )

    def note(self) -> str:
        """What a ledger keeps of it, for whoever finds that it was not stored."""
        if self.due is not None:
            return json.dumps({"due": self.due.isoformat()})
        texts = {"error": self.error[:MAX_ERROR], "traceback": self.traceback[-MAX_TRACEBACK:]}
        # A note has room for 4,000 characters, and escapes take more than one.
        note = json.dumps({"reason": self.reason, **texts}, ensure_ascii=False)[:4000]
        # The text of an error may hold half a character, such as the name of a file that is no UTF-8.
        return note.encode("utf-8", "replace").decode()

    @classmethod
    def read(cls, note: str) -> Owed:
        """What `note` wrote."""
        try:
            fields: dict[str, Any] = json.loads(note)
        except ValueError:
            return cls(error="what the ledger says of the failure was cut")
        if "due" in fields:
            return cls(due=datetime.fromisoformat(fields["due"]))
        return cls(**fields)


class Claims:
    """The claims of one message on its handlers.

    Attributes:
        owed: what follows from a run of a handler that ended before it was known to be stored.
        elsewhere: those that another process runs.
        wait: seconds after which to look at them again.
    """

    def __init__(self, ledger: Ledger, leases: Leases, queue: str, emission: Emission) -> None:
        self.owed: dict[EventHandler, Owed] = {}
        self.elsewhere: list[EventHandler] = []
        self.wait = 1.0
        self._ledger = ledger
        self._leases = leases
        self._queue = queue
        self._emission = emission
        self._granted: dict[EventHandler, Claim] = {}

    def take(self, handlers: Iterable[EventHandler]) -> list[EventHandler]:
        """Claim handlers before they run; returns those that may.

        Raises:
            Exception: the ledger failed; nothing is claimed.
        """
        self.elsewhere.clear()
        try:
            for handler in handlers:
                self._take(handler)
        except BaseException:
            self.release()
            raise
        return list(self._granted)

    def _take(self, handler: EventHandler) -> None:
        key = self._key(handler)
        if handler.once and not self._ledger.claim_once(key):
            return
        turn = self._emission.replay, self._emission.attempt
        answer = self._ledger.claim(key, turn)
        if isinstance(answer, Claim):
            self._granted[handler] = answer
        elif answer.state == "owed" and answer.turn == turn:
            self.owed[handler] = Owed.read(answer.note)
        elif answer.state == "running" and answer.turn <= turn:
            self.elsewhere.append(handler)
            self.wait = max(self.wait, answer.lease)
        else:
            self._say_skipped(handler, answer)

    def _key(self, handler: EventHandler) -> Key:
        linker = self._emission.linker
        name = handler.id if linker == "default" else f"{linker}/{handler.id}"
        return Key(self._queue, self._emission.id, name)

    def _say_skipped(self, handler: EventHandler, row: Row) -> None:
        logger.info(
            "Handler %s is not run again on emission %s of %r: the ledger says that it is %s",
            handler.id, self._emission.id, self._emission.event, row.state,
        )  # fmt: skip

    def release(self) -> None:
        """Give back what was claimed and not used; what cannot be runs out."""
        for claim in self._granted.values():
            with suppress(Exception):
                self._ledger.release(claim)
        self._granted.clear()

    @contextmanager
    def held(self) -> Generator[None]:
        """Renew the claims while the handlers run."""
        with self._leases.hold(self._granted.values()):
            yield

    def of(self, handler: EventHandler) -> Claim:
        """The claim on a handler that may run."""
        return self._granted[handler]

    def record(self, result: Result) -> Result:
        """Write down what became of a run, before anything follows from it; returns what stands.

        Raises:
            Exception: the ledger failed.
        """
        if result.error is None:
            return self._settle(result, "done")
        return self._settle(result, "owed", Owed.of(result).note())

    def record_dead(self, result: Result) -> None:
        """Write down that the dead letter of a handler is stored."""
        self._settle(result, "dead")

    def _settle(self, result: Result, state: Settled, note: str = "") -> Result:
        handler, claim = result.handler, self._granted[result.handler]
        try:
            stands = insist(lambda _: self._ledger.settle(claim, state, note), Exception, but=LeaseLost)
        except LeaseLost as error:
            logger.warning("What handler %s did is not recorded: %s", handler.id, error)
            return replace(result, is_lost=True)
        if result.error is not None and stands == "done":
            logger.warning(
                "Handler %s failed on emission %s of %r after it had recorded that it is done: it is not run again",
                handler.id, self._emission.id, self._emission.event,
            )  # fmt: skip
            return Result(handler)
        return result
