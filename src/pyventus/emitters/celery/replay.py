"""The dead letters of a queue: how they are made, and how they are replayed."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback as tracebacks
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from pyventus.dead_letters.base import DeadLetter, DeadLetterStore, Reason
from pyventus.emission import Emission
from pyventus.emitters.celery.publisher import Message, PublishError
from pyventus.errors import PyventusError, Refused, describe_error
from pyventus.wire import Envelope, open_envelope

if TYPE_CHECKING:
    from pyventus.emitters.celery.queue import Queue

logger = logging.getLogger("pyventus")

# Before the name of a queue, what its letters are sealed for: so that none of them is a message.
LETTERS_OF = "dead:"
LETTER_IDS = UUID("0d4fbb8e-2a3b-5c92-8b4e-6b7a64a1d5c3")
MAX_ERROR = 1_000
MAX_TRACEBACK = 20_000
MAX_ID = 255
PUBLISH_SECONDS = 5.0
# What is published is removed together: RabbitMQ goes through the whole queue each time.
BATCH = 500


# -- Making letters -----------------------------------------------------------------------------------------------


def make_letter(
    queue: Queue,
    envelope: Envelope,
    reason: Reason,
    *,
    handlers: Iterable[str] = (),
    error: BaseException | str = "",
    traceback: str = "",
) -> DeadLetter:
    """The letter of an emission that died. Made again of the same message and handlers, it has the same id.

    Args:
        queue: of the message.
        envelope: from the message.
        reason: why it died.
        handlers: ids of those that failed, which a replay runs; empty: all that the emission is for.
        error: what happened; of an exception type, text and traceback are taken.
        traceback: of a failure whose exception is not at hand.
    """
    emission = envelope.emission
    failed = tuple(handlers) or emission.handlers
    letter_id = _letter_id("dead", queue.name, envelope.message_id, *failed)
    text = envelope.reseal(
        replace(emission, handlers=failed), queue=LETTERS_OF + queue.name, message_id=letter_id, keyring=queue.keyring
    )
    return DeadLetter(
        id=letter_id, queue=queue.name, reason=reason, text=text, message_id=envelope.message_id, emission=emission.id,
        event=emission.event, linker=emission.linker, handlers=failed, attempt=emission.attempt,
        replay=emission.replay, timestamp=emission.timestamp, error=_one_line(error),
        traceback=(traceback or _traceback(error))[-MAX_TRACEBACK:],
    )  # fmt: skip


def refused_letter(queue: Queue, message_id: object, text: object, error: Exception | str) -> DeadLetter | None:
    """The letter of a refused message; None if it could never be verified: no text, not ASCII, or too large."""
    if not isinstance(text, str) or len(text) > queue.max_text or not text.isascii():
        return None
    shown_id = str(message_id)[:MAX_ID]
    return DeadLetter(
        id=_letter_id("refused", queue.name, shown_id, text), queue=queue.name, reason="refused", text=text,
        message_id=shown_id, error=_one_line(str(error)),
    )  # fmt: skip


def _letter_id(*parts: str) -> str:
    return str(uuid5(LETTER_IDS, "\n".join(parts)))


def _one_line(error: BaseException | str) -> str:
    text = " ".join(error.split()) if isinstance(error, str) else describe_error(error)
    return text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 1] + "…"


def _traceback(error: BaseException | str) -> str:
    return "" if isinstance(error, str) else "".join(tracebacks.format_exception(error))


# -- The dead letters of a queue ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of dead letters that were to be replayed.

    Attributes:
        replayed: ids of the letters whose emissions are in the queue again; they are removed.
        failed: reason by id of those that are not; they are where they were.
    """

    replayed: tuple[str, ...]
    failed: dict[str, str]


Letters = list[DeadLetter]


class DeadLetters:
    """The dead letters of a queue, and apart from them what was refused.

    All methods block, none of them for minutes.

    Args:
        queue: whose.
        store: where they are kept.
    """

    def __init__(self, queue: Queue, store: DeadLetterStore) -> None:
        self._queue = queue
        self.store = store

    def keep(
        self,
        envelope: Envelope,
        reason: Reason,
        *,
        handlers: Iterable[str] = (),
        error: BaseException | str = "",
        traceback: str = "",
    ) -> DeadLetter:
        """Make a letter, see `make_letter`, and store it.

        Raises:
            Exception: whatever the store raises; whether it is stored is then unknown.
        """
        letter = make_letter(self._queue, envelope, reason, handlers=handlers, error=error, traceback=traceback)
        self.store.add(letter)
        return letter

    def keep_refused(self, message_id: object, text: object, error: Exception | str) -> None:
        """Keep a refused message, if it can ever be verified. A store that fails is logged."""
        letter = refused_letter(self._queue, message_id, text, error)
        if letter is None:
            return
        try:
            self.store.add(letter)
        except Exception as failure:
            logger.error("Refused message %.100r of queue %r is lost: %r", message_id, self._queue.name, failure)

    def list(self, *, refused: bool = False) -> Letters:
        """The letters, oldest first, or those of refused messages.

        Raises:
            PyventusError: the store failed.
        """
        with _store_errors(self._queue):
            return [*self.store.letters(self._queue.name, refused=refused)]

    def get(self, id: str, *, refused: bool = False) -> DeadLetter | None:
        """The letter of that id; None if there is none.

        Raises:
            PyventusError: the store failed.
        """
        return next((letter for letter in self.list(refused=refused) if letter.id == id), None)

    def open(self, letter: DeadLetter) -> Envelope:
        """The envelope in a letter; its ``decode()`` is the emission with its arguments.

        Raises:
            Refused: it does not verify with the keys of today, or what the letter shows is not what is signed.
        """
        if letter.reason == "refused":
            return self._queue.open(letter.text, letter.message_id)
        if letter.reason == "unreadable":
            raise Refused(letter.error)
        envelope = open_envelope(
            letter.text, queue=LETTERS_OF + self._queue.name, message_id=letter.id, serializers=self._queue.serializers,
            keyring=self._queue.keyring, max_size=len(letter.text),
        )  # fmt: skip
        _check_shown(letter, envelope.emission)
        return envelope

    def replay(self, *ids: str, refused: bool = False) -> Replay:
        """Publish the emissions of letters again, for the handlers that failed, and then remove the letters.

        Their attempts start anew. Whatever interrupts it loses nothing; at worst an emission is published a second
        time, under the same message id. A refused message is published as it came, if it verifies by now.

        Args:
            *ids: of the letters.
            refused: whether they are those of refused messages.

        Raises:
            PyventusError: the store failed.
        """
        found = {letter.id: letter for letter in self.list(refused=refused)}
        replay = self._replay([found[id] for id in dict.fromkeys(ids) if id in found], refused)
        return replace(
            replay, failed={**replay.failed, **{id: "there is no such letter" for id in ids if id not in found}}
        )

    def replay_all(self, *, refused: bool = False) -> Replay:
        """Replay all letters, oldest first; as `replay`."""
        return self._replay(self.list(refused=refused), refused)

    def remove(self, *ids: str, refused: bool = False) -> int:
        """Remove letters for good; returns how many there were.

        Raises:
            PyventusError: the store failed.
        """
        with _store_errors(self._queue):
            return self.store.remove(self._queue.name, ids, refused=refused)

    def purge(self, *, refused: bool = False) -> int:
        """Remove all letters for good; returns how many there were.

        Raises:
            PyventusError: the store failed.
        """
        with _store_errors(self._queue):
            return self.store.purge(self._queue.name, refused=refused)

    def __repr__(self) -> str:
        return f"<DeadLetters of {self._queue!r}>"

    # -- Replaying ------------------------------------------------------------------------------------------------

    def _replay(self, letters: Letters, refused: bool) -> Replay:
        replayed: Letters = []
        failed: dict[str, str] = {}
        for batch in _batches(letters):
            published: Letters = []
            try:
                for letter in batch:
                    try:
                        self._publish(letter, refused)
                        published.append(letter)
                    except (PyventusError, PublishError) as error:
                        failed[letter.id] = str(error)
            finally:
                # Also when it is interrupted: what is published is not to be published again.
                failed |= self._forget(published, refused)
            replayed += published
        return Replay(tuple(letter.id for letter in replayed if letter.id not in failed), failed)

    def _publish(self, letter: DeadLetter, refused: bool) -> None:
        if (letter.reason == "refused") != refused:
            raise Refused("its record was changed: it is not where letters of its reason are")
        publishing = self._queue.publisher.start(self._message(letter))
        publishing.wait(time.monotonic() + PUBLISH_SECONDS)
        if publishing.error is not None:
            raise publishing.error

    def _message(self, letter: DeadLetter) -> Message:
        queue, envelope = self._queue, self.open(letter)
        if letter.reason != "refused":
            emission = _anew(envelope.emission)
            return queue.follow_up(envelope, emission)
        emission = envelope.emission
        options = {} if emission.due is None else {"eta": emission.due}
        return Message(
            queue.task_name, queue.name, letter.message_id, emission.event, letter.text, emission.priority, options
        )

    def _forget(self, letters: Letters, refused: bool) -> dict[str, str]:
        """Remove what was published; returns what is to be said of those that could not be."""
        ids = [letter.id for letter in letters]
        try:
            self.remove(*ids, refused=refused)
        except PyventusError as error:
            why = f"it was published, but not removed, and would be published again under the same message id: {error}"
            return dict.fromkeys(ids, why)
        return {}


def _anew(emission: Emission) -> Emission:
    return replace(emission, replay=emission.replay + 1, attempt=1, suspect=False, due=datetime.now(UTC), expires=None)


def _check_shown(letter: DeadLetter, emission: Emission) -> None:
    """What a person read before replaying it is what runs."""
    for name in ("event", "linker", "handlers", "attempt", "replay", "timestamp"):
        if getattr(letter, name) != getattr(emission, name):
            raise Refused(f"its record was changed: {name} is not what is signed")
    if letter.emission != emission.id:
        raise Refused("its record was changed: emission is not what is signed")


def _batches(letters: Letters) -> Iterator[Letters]:
    rest = iter(letters)
    while batch := [*islice(rest, BATCH)]:
        yield batch


@contextlib.contextmanager
def _store_errors(queue: Queue) -> Iterator[None]:
    try:
        yield
    except PyventusError:
        raise
    except Exception as error:
        what = str(error) if isinstance(error, PublishError) else describe_error(error)
        raise PyventusError(f"the dead letters of queue {queue.name!r} cannot be reached: {what}") from error
