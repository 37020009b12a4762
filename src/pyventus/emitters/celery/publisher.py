"""Has messages stored by a broker, or calls made there, within a deadline, whatever the broker does.

Connecting, and all that Celery and its drivers do, happens in threads of the publisher's own, because nothing else
bounds it: neither a name look-up nor a peer that trickles bytes ends at a socket timeout. Such a thread lends its
connection, once that is open, to whoever emits what is like an earlier message, a thread or a loop: two switches of
threads would take as long as all else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from amqp.exceptions import MessageNacked
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from pyventus import native
from pyventus.emitters.celery.delays import Delays
from pyventus.emitters.celery.flights import Flight
from pyventus.emitters.celery.sockets import is_past, is_quiet
from pyventus.emitters.celery.splicing import NotStored, Splicer, splicer_of
from pyventus.errors import describe_error

T = TypeVar("T")
Action = Callable[[Any, str], T]

# Enough that what hangs, or takes long, holds up nobody else; more share fewer round trips.
MAX_SENDERS = 4
MAX_LEAVING = 20
# Messages in one round trip.
MAX_TOGETHER = 1000
# Messages, and bytes of their texts, that a loop sends itself; to make more of them would hold it up.
MAX_IN_FLIGHT = 100
MAX_BYTES_IN_FLIGHT = 1024 * 1024
IDLE_SECONDS = 300.0
FAIL_FAST_SECONDS = 1.0
# Ends a read that hangs in a thread that nobody waits for any more.
SOCKET_SECONDS = 30.0
# Then a thread that has not ended is one that bytes trickle to.
TRICKLE_SECONDS = 45.0
# Then a loop that should have given up does not run.
LOST_SECONDS = 1.0

NOT_SENT = "it was not sent"
UNKNOWN = "whether it was stored is unknown"
TOO_LATE = f"the broker did not answer within the deadline; {UNKNOWN}"
INTERRUPTED = f"it was interrupted; {UNKNOWN}"


class PublishError(Exception):
    """Why a message was not, or may not have been, stored; its text goes into an `EmitError`."""


class BrokerDown(PublishError):
    """The broker failed, so that other messages would fail too."""


class Abandoned(BaseException):
    """Ends a sender that nobody waits for any more."""


class Interrupted(OSError):
    """Raised in an abandoned sender by another thread; the drivers close a socket that fails so."""


@dataclass(slots=True)
class Message:
    """One message to one queue.

    Attributes:
        task: name of the Celery task that runs it.
        queue: name of the queue in the broker.
        id: of the Celery task.
        shadow: what the task is shown as.
        text: its one argument.
        priority: 0 to 9, 9 first on every broker; None: the broker's own default.
        options: further ones of Celery's ``send_task``, such as eta and parent_id.
        confirm: whether RabbitMQ is to confirm it; if not, it passes for stored once it is written to the connection.
        is_stored: whether it is known to be stored.
        template: the earlier one that it is made from, for the splicer that is about to send it.
    """

    task: str
    queue: str
    id: str
    shadow: str
    text: str = field(repr=False)
    priority: int | None = None
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    confirm: bool = True
    is_stored: bool = field(default=False, repr=False)
    template: Any = field(default=None, repr=False)


class Work:
    """Something that a sender does at the broker; ``error`` is None once it is known to be done."""

    #: Whether what is raised that is not the broker's own failure becomes ``error`` as it is.
    keeps_errors: ClassVar[bool] = False
    error: BaseException | None = None
    sender: Sender | None = None

    def __init__(self, senders: _Senders) -> None:
        self._senders = senders

    @property
    def is_through(self) -> bool:
        """Whether it is known to be done."""
        raise NotImplementedError

    def begin(self) -> None:
        """Another thread is going to do it."""
        # Receivers of before_task_publish, such as those of tracing, see the caller's context.
        self.context: Context = copy_context()
        # Of an error as a result: asyncio would report an exception that came after its waiter had left.
        self.future: Future[BaseException | None] | asyncio.Future[BaseException | None] = native.shared(Future())

    def wait(self, end: float) -> None:
        """Wait until it is done or has failed, at the latest until ``end``."""
        try:
            assert isinstance(self.future, Future)
            self.error = self.future.result(max(0.0, end - time.monotonic()))
        except BaseException as error:
            if not (isinstance(error, TimeoutError) and is_past(end)):
                self._senders.withdraw(self)
                raise
            self.error = self._senders.give_up(self)


Waiter = asyncio.Future[BaseException | None]


class _Wakes:
    """Wakes what waits on one loop; what ends at one time wakes it once, which takes a system call."""

    def __init__(self) -> None:
        self._ended: deque[tuple[Waiter, BaseException | None]] = deque()
        # Empty while the loop is going to look.
        self._idle: list[None] = [None]

    def wake(self, waiter: Waiter, error: BaseException | None) -> None:
        """Called by any thread."""
        self._ended.append((waiter, error))
        if _take(self._idle):
            try:
                waiter.get_loop().call_soon_threadsafe(self._wake_all)
            except RuntimeError:  # The loop is closed, and nobody waits there. What it would hold keeps it alive.
                self._ended.clear()
                self._idle.append(None)

    def _wake_all(self) -> None:
        self._idle.append(None)
        while self._ended:
            waiter, error = self._ended.popleft()
            if not waiter.done():
                waiter.set_result(error)


_wakes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Wakes] = WeakKeyDictionary()


def _wakes_of(loop: asyncio.AbstractEventLoop) -> _Wakes:
    # Each loop runs in one thread, so that nobody else makes them meanwhile.
    wakes = _wakes.get(loop)
    if wakes is None:
        wakes = _wakes[loop] = _Wakes()
    return wakes


class Publishing(Work):
    """Messages on their way to the broker.

    Attributes:
        messages: which ones, all for one queue.
        end: when who emits gives up, by ``time.monotonic()``.
    """

    def __init__(self, messages: Sequence[Message], senders: _Senders, end: float = math.inf) -> None:
        super().__init__(senders)
        self.messages = messages
        self.end = end

    def begin_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """A loop is going to send them, which runs."""
        self.context = copy_context()
        self.future = self._waiter = loop.create_future()

    def leave_loop(self) -> None:
        """Another thread is going to send them in its place."""
        waiter = self._waiter
        wakes = _wakes_of(waiter.get_loop())
        self.future = native.shared(Future())
        self.future.add_done_callback(lambda future: wakes.wake(waiter, future.result()))

    async def wait_async(self) -> None:
        """As `wait`, until its own end, without blocking the loop that it began in."""
        timer = self._waiter.get_loop().call_later(max(0.0, self.end - time.monotonic()), self._give_up)
        try:
            self.error = await self._waiter
        except BaseException:
            self._senders.withdraw(self)
            raise
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        if not self._waiter.done():
            error = self._senders.give_up(self)
            if not self._waiter.done():
                self._waiter.set_result(error)

    @property
    def queue(self) -> str:
        """The name of their queue."""
        return self.messages[0].queue

    @property
    def is_through(self) -> bool:
        return not self.rest()

    def rest(self) -> list[Message]:
        """What is not known to be stored."""
        return [message for message in self.messages if not message.is_stored]


class Calling(Work, Generic[T]):
    """An action that a sender calls with its channel and the name of its driver."""

    keeps_errors = True
    is_through = False
    value: T

    def __init__(self, action: Action[T], senders: _Senders) -> None:
        super().__init__(senders)
        self.action = action


class Publisher:
    """Sends the messages of one app, each thread of it over a connection of its own."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._inherited: list[_Senders] = []
        self._senders = _Senders(app)
        _publishers.add(self)

    def start(self, *messages: Message) -> Publishing:
        """Hand messages to a sender, which sends them together, and with what others have handed to it meanwhile."""
        self._renew_after_fork()
        publishing = Publishing(messages, self._senders)
        self._senders.start(publishing)
        return publishing

    def start_soon(self, messages: Sequence[Message], end: float) -> Publishing:
        """Have the running loop send messages when this turn of it is over, with what else is emitted in it.

        Args:
            messages: which ones.
            end: when to give up, by ``time.monotonic()``.
        """
        self._renew_after_fork()
        publishing = Publishing(messages, self._senders, end)
        self._senders.start_soon(publishing)
        return publishing

    def store(self, messages: Sequence[Message], end: float) -> Publishing:
        """Have messages stored, in this thread if a connection is at rest, and wait until it is known.

        Args:
            messages: which ones.
            end: when to give up, by ``time.monotonic()``.
        """
        self._renew_after_fork()
        publishing = Publishing(messages, self._senders)
        self._senders.lend_for(publishing, end)
        if publishing.error is None and (rest := publishing.rest()):
            others = self.start(*rest)
            others.wait(end)
            publishing.error = others.error
        return publishing

    def call(self, action: Action[T], end: float) -> T:
        """Call ``action`` in a sender's thread, with a channel of its connection.

        Args:
            action: called with the channel and the driver: "redis", "amqp" or another. It may be interrupted anywhere,
                so it holds no locks that others wait for; and it may still be at it when the deadline has passed.
            end: when to give up, by ``time.monotonic()``.

        Returns:
            What it returns.

        Raises:
            PublishError: the broker failed or did not answer in time; as for a message, others then fail at once.
            Exception: what else the action raises; the connection is then closed.
        """
        self._renew_after_fork()
        calling = Calling(action, self._senders)
        self._senders.start(calling)
        calling.wait(end)
        if calling.error is not None:
            raise calling.error
        return calling.value

    def _renew_after_fork(self) -> None:
        if self._senders.pid != os.getpid():
            # A fork that Python was not told of, as uwsgi's.
            self.renew()

    def renew(self) -> None:
        """Start afresh in a forked child, where the parent's threads do not exist, but its sockets do."""
        # They are kept: py-amqp would shut them down, for the parent too, when they are collected.
        self._inherited.append(self._senders)
        self._senders = _Senders(self._app)


_publishers: WeakSet[Publisher] = WeakSet()
_publishers_of: dict[Celery, Publisher] = {}
_lock = native.new_lock()


def publisher_of(app: Celery) -> Publisher:
    """The one publisher of an app in this process."""
    with _lock:
        if app not in _publishers_of:
            _publishers_of[app] = Publisher(app)
        return _publishers_of[app]


def _renew_all() -> None:
    for publisher in _publishers:
        publisher.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


class _Senders:
    """The senders of one app in one process, and the work that waits for one of them."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.pid = os.getpid()
        self.failures = 0
        self.lock = native.new_lock()
        self._is_patched = native.is_patched()
        self._waiting: deque[Work] = deque()
        self._senders: set[Sender] = set()
        # Those that wait for work; the last one has waited the least.
        self._idle: list[Sender] = []
        self._leaving: dict[Sender, float] = {}
        # What each loop emits in the turn that it is in.
        self._turns: dict[asyncio.AbstractEventLoop, list[Publishing]] = {}
        self._flights: set[Flight] = set()
        self._failed_at: float | None = None
        self._failure = ""

    def start(self, work: Work) -> None:
        """Queue work for the next free sender, or refuse it at once."""
        work.begin()
        self._queue(work)

    def _queue(self, work: Work) -> None:
        with self.lock:
            self._interrupt_old()
            self._end_lost()
            refusal = self._refusal()
            if refusal is None:
                self._waiting.append(work)
                refusal = self._find_sender()
            if refusal is not None:
                work.future.set_result(refusal)

    def _refusal(self) -> PublishError | None:
        if self._failed_at is not None and time.monotonic() - self._failed_at < FAIL_FAST_SECONDS:
            return self._too_soon()
        if len(self._leaving) >= MAX_LEAVING:
            return BrokerDown(f"{NOT_SENT}, because {len(self._leaving)} earlier attempts still hang at the broker")
        return None

    def _too_soon(self) -> PublishError:
        return BrokerDown(
            f"{NOT_SENT}, because the broker failed less than {FAIL_FAST_SECONDS:g} s ago: {self._failure}"
        )

    def _interrupt_old(self) -> None:
        for sender, since in self._leaving.items():
            if time.monotonic() - since > TRICKLE_SECONDS:
                sender.interrupt()

    def _find_sender(self) -> PublishError | None:
        try:
            self._wake_one()
        except RuntimeError as error:
            # Out of threads, or Python is being shut down.
            if not self._senders:
                self._waiting.pop()
                return PublishError(f"{NOT_SENT}: {error}")
        return None

    def _wake_one(self) -> None:
        """Have a sender take what waits: an idle one, or a new one, or else the next that is done."""
        # After a failure one sender finds out for all whether the broker is back.
        # What a loop has may have failed with the others, and the loop not know yet.
        limit = MAX_SENDERS if self._failed_at is None else 1 + self._flying()
        if self._idle:
            # In this order none is left neither idle nor told, wherever the thread is interrupted.
            self._idle[-1].changed.notify()
            self._idle.pop()
        elif len(self._senders) < limit:
            if not self._senders and self._is_patched:
                # Imports what all senders need. They would at once, and the locks of imports are gevent's.
                with contextlib.suppress(Exception):
                    self.app.connection_for_write().get_transport_cls()
            self._senders.add(Sender(self))

    def next(self, sender: Sender) -> list[Work]:
        """The next work for a sender, of messages all that fits into a round trip; none when it is to end."""
        with self.lock:
            while not self._waiting:
                self._idle.append(sender)
                if not self._is_woken(sender):
                    return []
            works = self._take()
            for work in works:
                work.sender = sender
            return works

    def _is_woken(self, sender: Sender) -> bool:
        """Wait until an idle sender is no longer idle, nor lent; whether it goes on then."""
        while sender in self._idle or sender.lent_for is not None:
            is_told = sender.changed.wait(IDLE_SECONDS)
            if not is_told and sender in self._idle and time.monotonic() - sender.back_at >= IDLE_SECONDS:
                self._idle.remove(sender)
                self._drop(sender)
        return sender in self._senders

    def lend_for(self, publishing: Publishing, end: float) -> None:
        """Have the calling thread send what is like earlier messages, if a connection is at rest; leave the others."""
        if self._is_patched:
            return  # A socket belongs to the hub of the thread that made it.
        try:
            sender = self._lend(publishing)
            if sender is not None:
                error = sender.store_for(publishing, end)
                self._give_back(sender, error)
                if error is not None and not publishing.is_through:
                    publishing.error = error
        except BaseException:
            self._take_back(publishing)
            raise

    def _lend(self, borrower: Publishing | Flight) -> Sender | None:
        with self.lock:
            if self._flights or self._turns:
                self._end_lost()
            # One is left to what the thread of a loop emits by `emit`, and then waits for.
            if isinstance(borrower, Flight) and self._flying() >= MAX_SENDERS - 1:
                return None
            if not self._idle or self._waiting or self._leaving or self._failed_at is not None:
                return None
            # In an order in which `_take_back` finds it, wherever the thread is interrupted.
            sender = self._idle[-1]
            sender.lent_for = borrower
            self._idle.pop()
            return sender

    def _give_back(self, sender: Sender, error: BaseException | None) -> None:
        """After an error its connection is of no use any more."""
        with self.lock:
            sender.back_at = time.monotonic()
            is_here = sender in self._senders
            if is_here and error is None and not self._waiting:
                self._idle.append(sender)
            else:
                sender.changed.notify()
            if is_here and error is not None:
                self._drop(sender)
                if isinstance(error, BrokerDown):
                    self._fail(str(error))
                else:
                    self._replace()
            # Last: until then `_take_back` finds it.
            sender.lent_for = None

    def _take_back(self, borrower: Publishing | Flight) -> None:
        """The thread was interrupted, and what it has left in the connection is unknown."""
        with self.lock:
            for sender in [each for each in (*self._senders, *self._leaving) if each.lent_for is borrower]:
                if sender in self._idle:
                    self._idle.remove(sender)
                self._give_back(sender, PublishError(INTERRUPTED))

    # -- What loops send themselves ---------------------------------------------------------------------------

    def start_soon(self, publishing: Publishing) -> None:
        """Have the running loop send it when this turn of it is over, or a sender what takes long."""
        loop = asyncio.get_running_loop()
        publishing.begin_in(loop)
        if self._is_patched or len(publishing.messages) > MAX_IN_FLIGHT:
            self._send_elsewhere(publishing)
        else:
            turn = self._turns.setdefault(loop, [])
            if all(each.future.done() for each in turn):
                loop.call_soon(self._end_turn, loop)
            turn.append(publishing)

    def _send_elsewhere(self, publishing: Publishing) -> None:
        publishing.leave_loop()
        self._queue(publishing)

    def _end_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send what the turn has emitted, over one connection if one is at rest; what cannot go so, senders send."""
        # Whose deadline has passed will find that it was not sent.
        turn = [each for each in self._turns.pop(loop, ()) if time.monotonic() < each.end and not each.future.done()]
        flight = Flight(loop, self._land)
        try:
            sender = self._lend(flight)
            if sender is not None:
                self._flights.add(flight)
                if not sender.fly(flight, turn):
                    self._flights.discard(flight)
                    self._give_back(sender, None)
        except BaseException:
            self._take_back(flight)
            self._settle(flight, PublishError(INTERRUPTED))
            self._flights.discard(flight)
            raise
        finally:
            for each in turn:
                if each.sender is None:
                    self._send_elsewhere(each)

    def _land(self, flight: Flight, error: BaseException | None) -> None:
        try:
            if error is not None and not isinstance(error, PublishError):
                error = flight.sender.explain(error, flight.publishings[0])
            self._settle(flight, error)
            self._give_back(flight.sender, error)
        except BaseException:
            self._take_back(flight)
            self._settle(flight, PublishError(INTERRUPTED))
            raise
        finally:
            self._flights.discard(flight)

    def only_one_is_busy(self) -> bool:
        """Whether all others wait for work."""
        return len(self._idle) >= len(self._senders) - 1

    def _flying(self) -> int:
        return sum(isinstance(sender.lent_for, Flight) for sender in self._senders)

    def _settle(self, flight: Flight, failure: BaseException | None) -> None:
        with self.lock:
            for each in flight.publishings:
                if each.future.done():
                    continue
                if each.is_through:
                    each.future.set_result(None)
                elif failure is not None:
                    each.future.set_result(failure)
                else:
                    self._send_elsewhere(each)  # RabbitMQ has returned it, and a sender declares its queue.

    def _end_lost(self) -> None:
        """Take back what was lent to loops that were closed, or stopped, before they had their answer."""
        for flight in [each for each in list(self._flights) if each.publishings]:
            if flight.loop.is_closed():
                self._flights.discard(flight)
                self._give_back(flight.sender, PublishError(INTERRUPTED))
            elif time.monotonic() > flight.end + LOST_SECONDS and flight.sender in self._senders:
                # It does not hang at the broker, and so is not one of those that leave.
                self._senders.discard(flight.sender)
                with contextlib.suppress(RuntimeError):
                    flight.loop.call_soon_threadsafe(flight.finish, BrokerDown(TOO_LATE))
        for loop in [each for each in list(self._turns) if each.is_closed()]:
            self._turns.pop(loop, None)

    def _replace(self) -> None:
        """Others may wait for a sender that leaves."""
        if self._waiting:
            with contextlib.suppress(RuntimeError):
                self._wake_one()

    def _take(self) -> list[Work]:
        works, room = [self._waiting.popleft()], MAX_TOGETHER
        while isinstance(works[-1], Publishing) and self._waiting and isinstance(self._waiting[0], Publishing):
            room -= len(works[-1].messages)
            if room < len(self._waiting[0].messages):
                break
            works.append(self._waiting.popleft())
        return works

    def settle(self, sender: Sender, works: list[Work], error: BaseException | None, failed: Collection[Work]) -> bool:
        """Tell who waits what became of the works; whether their sender goes on.

        Args:
            sender: who did them.
            works: what it took.
            error: what ended it; None: all is done.
            failed: what it was at then; of the rest, what is not through was not begun.
        """
        with self.lock:
            is_here = sender in self._senders
            if is_here and error is None:
                self._failed_at = None
            elif is_here:
                self._drop(sender)
            for work in works:
                # Of one that is done the deadline has passed.
                if not work.future.done() and (error is None or work.is_through or work in failed):
                    work.future.set_result(None if work.is_through else error)
            self._waiting.extendleft(work for work in reversed(works) if not work.future.done())
            if is_here and isinstance(error, BrokerDown):
                self._fail(str(error))
            elif error is not None:
                self._replace()
            return is_here and error is None

    def give_up(self, work: Work) -> BaseException | None:
        """What became of the work by its deadline; a sender that is still at it is abandoned."""
        with self.lock:
            if work.future.done():
                return work.future.result()
            if self._withdraw(work):
                return PublishError(f"all connections were busy until the deadline, and {NOT_SENT}")
            sender = work.sender
            error: PublishError = BrokerDown(TOO_LATE)
            if sender is None:
                error = PublishError(f"the event loop was busy until the deadline, and {NOT_SENT}")
            work.future.set_result(error)
            if sender is None:
                return error
            if sender in self._senders:
                self._drop(sender)
                sender.abandon()
                self._fail("it did not answer within the deadline")
            flight = sender.lent_for
            if isinstance(flight, Flight) and all(each.future.done() for each in flight.publishings):
                flight.finish(error)
            return error

    def withdraw(self, work: Work) -> None:
        """Who waited has left: do not begin the work, if it is not begun yet."""
        with self.lock:
            self._withdraw(work)

    def _withdraw(self, work: Work) -> bool:
        if work not in self._waiting:
            return False
        self._waiting.remove(work)
        return True

    def _drop(self, sender: Sender) -> None:
        self._senders.discard(sender)
        if not sender.is_over:
            self._leaving[sender] = time.monotonic()

    def _fail(self, failure: str) -> None:
        self.failures += 1
        # Without what became of that message, since it is said of others.
        self._failed_at, self._failure = time.monotonic(), failure.rpartition("; ")[0] or failure
        while self._waiting:
            self._waiting.popleft().future.set_result(self._too_soon())

    def ended(self, sender: Sender) -> None:
        """A sender's thread is gone. If it had not left the others before, what waits for it gets another one."""
        with self.lock:
            sender.is_over = True
            self._leaving.pop(sender, None)
            if sender not in self._senders:
                return
            self._senders.discard(sender)
            self._replace()


class Sender:
    """A thread with a connection to the broker; it ends with its first failure."""

    def __init__(self, senders: _Senders) -> None:
        self._senders = senders
        self._app = senders.app
        self._turn = senders.failures
        self._connection: Connection | None = None
        self._driver = ""
        self._producer: Any = None
        self._delays: Delays | None = None
        self.splicer: Splicer | None = None
        self._returned: BaseException | None = None
        self.changed = native.new_condition(senders.lock)
        self.lent_for: Publishing | Flight | None = None
        self.back_at = 0.0
        self.is_over = False
        self._is_abandoned = False
        self._ident = 0
        # Holds an item while an exception may be raised in this thread; who takes it out decides.
        self._interruptible: list[None] = []
        native.start_thread(self._run)

    def _run(self) -> None:
        self._ident = _thread_ident()
        try:
            while self._send_next():
                pass
        finally:
            with contextlib.suppress(Exception):
                self._disconnect()
            self._senders.ended(self)

    def _send_next(self) -> bool:
        works = self._senders.next(self)
        if not works:
            return False
        self._at: Collection[Work] = works
        error: BaseException | None
        try:
            error = self._attempt(works)
        except Abandoned:
            error = PublishError(f"it was interrupted, because nobody waited for it any more; {UNKNOWN}")
        return self._senders.settle(self, works, error, self._at)

    def _attempt(self, works: list[Work]) -> BaseException | None:
        try:
            self._connect()
        except PublishError as error:
            return error
        except ModuleNotFoundError as error:
            # Kombu's Redis transport needs more than redis itself.
            return PublishError(f"{error} (for Redis: pip install 'pyventus[redis]'); {NOT_SENT}")
        except Exception as error:
            return self._explain(BrokerDown, error, NOT_SENT)
        try:
            if isinstance(works[0], Calling):
                self._perform(works[0])
            else:
                self._store_all([work for work in works if isinstance(work, Publishing)])
        except PublishError as error:
            return error
        except Abandoned:
            raise
        except BaseException as error:
            # A SystemExit, too: receivers of Celery's signals are the user's code, and who emitted waits for a word.
            return self.explain(error, works[0])
        return None

    def _perform(self, calling: Calling[T]) -> None:
        calling.value = calling.context.run(self._interruptibly, calling.action, self._producer.channel, self._driver)
        calling.is_through = True

    def _store_all(self, publishings: list[Publishing]) -> None:
        """Send in the order given: those that are like earlier ones together, each other one in Celery's own way."""
        together: list[tuple[Publishing, Message]] = []
        for publishing in publishings:
            # Some may be stored already: it waits again if what shared its round trip has failed.
            for message in publishing.rest():
                splicer = self.splicer
                if splicer is not None and not splicer.is_watched() and splicer.can_make(message):
                    together.append((publishing, message))
                else:
                    self._store_together(together)
                    together = []
                    self._store_of(publishing, message)
        self._store_together(together)

    def _store_together(self, together: list[tuple[Publishing, Message]]) -> None:
        if self.splicer is None or not together:
            return
        self._at = {publishing for publishing, _ in together}
        try:
            self._interruptibly(self.splicer.make_ready)
        except Exception as error:
            raise self._explain(BrokerDown, error, NOT_SENT) from None
        self._check_abandoned()
        self.splicer.send([message for _, message in together], time.monotonic() + SOCKET_SECONDS)
        for publishing, message in together:
            if not message.is_stored:
                self._store_of(publishing, message)

    def _store_of(self, publishing: Publishing, message: Message) -> None:
        self._at = {publishing}
        publishing.context.run(self._store, message)
        message.is_stored = True

    def _store(self, message: Message) -> None:
        """Publish a message; on RabbitMQ it is confirmed then, and in a queue."""
        self._publish(message)
        if self._returned is not None:
            # Its queue may have been deleted after this connection had declared it.
            assert self._connection is not None
            self._connection.declared_entities.clear()
            assert self._delays is not None
            self._delays.declare_again()
            self._publish(message)
        if self._returned is not None:
            raise PublishError(f"RabbitMQ has no queue to route it to ({self._returned}); it was not stored")

    def _publish(self, message: Message) -> None:
        assert self._delays is not None
        self._returned = None
        delayed = self._delays.options(message.queue, message.options)
        with self.splicer.recorded(message) if self.splicer is not None else contextlib.nullcontext():
            self._app.send_task(
                message.task, args=(message.text,), task_id=message.id, queue=message.queue, shadow=message.shadow,
                argsrepr="(...)", kwargsrepr="{}", serializer="json", ignore_result=True, add_to_parent=False,
                producer=self._producer, retry=False, **delayed, **self._options(message),
            )  # fmt: skip

    def _options(self, message: Message) -> dict[str, Any]:
        options: dict[str, Any] = {"mandatory": True} if self._driver == "amqp" else {}
        if message.priority is not None:
            # On Redis 0 is served first, on RabbitMQ 9.
            options["priority"] = 9 - message.priority if self._driver == "redis" else message.priority
        return options

    # -- Being lent -------------------------------------------------------------------------------------------

    def store_for(self, publishing: Publishing, end: float) -> BaseException | None:
        """Send, in the thread that has borrowed this sender, all of a publishing that is like earlier messages.

        Returns:
            What makes the connection useless; None, with nothing sent, also if one of them has to go another way.
        """
        splicer = self._ready()
        if splicer is None or not splicer.can_make(*publishing.messages):
            return None
        try:
            # What spins takes time from other threads, which may have a use for it.
            splicer.send(publishing.messages, end, self._senders.only_one_is_busy())
        except Exception as error:
            is_timeout = isinstance(error, TimeoutError) and error.errno is None  # Else the kernel has ended it.
            if is_timeout and is_past(end):
                return BrokerDown(TOO_LATE)
            if is_timeout or not isinstance(error, self._errors):
                raise  # It came from outside, such as from a signal handler of the user's.
            return self.explain(error, publishing)
        return None

    def fly(self, flight: Flight, publishings: Sequence[Publishing]) -> bool:
        """Have a loop that has borrowed this sender send what is like earlier messages; whether it does."""
        splicer = self._ready()
        if splicer is None:
            return False
        messages: list[Message] = []
        flying, room = [], MAX_BYTES_IN_FLIGHT
        for publishing in publishings:
            size = sum(len(message.text) for message in publishing.messages)
            fits = len(messages) + len(publishing.messages) <= MAX_TOGETHER and size <= room
            if fits and splicer.can_make(*publishing.messages):
                flying.append(publishing)
                messages += publishing.messages
                room -= size
        return bool(flying) and flight.begin(self, flying, messages)

    def _ready(self) -> Splicer | None:
        """What sends at once; None: nothing does."""
        splicer = self.splicer
        return splicer if splicer is not None and not splicer.is_watched() and splicer.is_ready() else None

    # -- The connection -----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._connection is not None and self._is_stale():
            self._disconnect()
        if self._connection is None:
            self._connection = _connection(self._app)
            self._interruptibly(self._open, self._connection)

    def _open(self, connection: Connection) -> None:
        urls = len(connection.alt) or 1
        # Of a failover list, one after the one that hung the last time.
        for _ in range(self._turn % urls):
            connection.maybe_switch_next()
        # Each once; connect() would try twice, two seconds apart.
        connection.ensure_connection(
            self._check_abandoned, urls - 1, interval_start=0, interval_step=0, reraise_as_library_errors=False
        )
        self._driver = connection.transport.driver_type
        self._producer = self._app.amqp.Producer(
            connection.channel(), auto_declare=False, on_return=self._on_return if self._driver == "amqp" else None
        )
        self._delays = Delays(self._app, connection, self._producer.channel, self._interruptibly)
        self.splicer = splicer_of(self._driver, self._app, self._producer.channel)
        self._errors = (OSError, NotStored, *connection.connection_errors, *connection.channel_errors)
        # Not all of send_task: it calls receivers of Celery's signals, which may hold locks of the user's.
        self._producer.publish = partial(self._interruptibly, self._producer.publish)

    def _on_return(self, error: BaseException, *_: object) -> None:
        self._returned = error

    def _is_stale(self) -> bool:
        """Whether RabbitMQ has closed an idle connection: bytes that wait are its farewell, or an end of file."""
        if self._driver != "amqp" or self._connection is None:
            return False  # redis-py looks for itself before it uses a connection.
        if not self._connection.connected:
            return True
        return not is_quiet(self._connection.connection.sock)

    def _disconnect(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if self.splicer is not None:
            self.splicer.close()
        if connection is None:
            return
        if self._driver == "amqp":
            # Without the farewell for which RabbitMQ would have to answer.
            connection.collect()
        else:
            # Kombu's collect() would change the default timeout of all sockets of the process meanwhile.
            connection.release()

    # -- Being abandoned ----------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Have the thread connect and send no more. A read that hangs ends with the timeout of its socket."""
        self._is_abandoned = True

    def interrupt(self) -> None:
        """End a read in which bytes trickle."""
        if _take(self._interruptible):
            _raise_in(self._ident, Interrupted)

    def _interruptibly(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a call in which, and nowhere else, `interrupt` raises: elsewhere it could strike between taking a lock
        and being ready to give it back.
        """
        self._interruptible.append(None)
        try:
            self._check_abandoned()
            return call(*args, **kwargs)
        finally:
            if not _take(self._interruptible):
                # The interruption is on its way, unless it is what ended the call.
                with contextlib.suppress(Interrupted):
                    time.sleep(0.1)
                raise Abandoned

    def _check_abandoned(self, *_: object) -> None:
        if self._is_abandoned:
            # What it was about to do, another one can do for those that still wait for it.
            self._at = ()
            raise Abandoned

    # -- What is said of errors -----------------------------------------------------------------------------------

    def explain(self, error: BaseException, work: Work) -> BaseException:
        """What an error means that has ended a work at the broker."""
        original = _original(error)
        if isinstance(original, MessageNacked):
            return PublishError("RabbitMQ refused it, as it does when the queue is full; it was not stored")
        if isinstance(original, NotStored):
            text = str(original)
            # What is being loaded is as good as down.
            kind = BrokerDown if text.startswith("LOADING ") else PublishError
            return kind(f"Redis refused it: {text.rstrip('.')}; it was not stored")
        assert self._connection is not None
        if isinstance(original, self._connection.connection_errors):
            return self._explain(BrokerDown, error, UNKNOWN)
        return error if work.keeps_errors else self._explain(PublishError, error, UNKNOWN)

    def _explain(self, kind: type[PublishError], error: BaseException, consequence: str) -> PublishError:
        return kind(f"{self._hide_password(describe_error(_original(error)))}; {consequence}")

    def _hide_password(self, text: str) -> str:
        password = self._connection.password if self._connection is not None else None
        return text.replace(password, "****") if password else text


# Not threading.get_ident(), which gevent replaces.
_thread_ident = ctypes.PYFUNCTYPE(ctypes.c_ulong)(("PyThread_get_thread_ident", ctypes.pythonapi))
_raise_in = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)


def _take(token: list[None]) -> bool:
    try:
        token.pop()
    except IndexError:
        return False
    return True


def _original(error: BaseException) -> BaseException:
    """The broker's own error, which kombu wraps in one of its own."""
    return error.__cause__ or error if isinstance(error, OperationalError) else error


def _connection(app: Celery) -> Connection:
    try:
        driver = app.connection_for_write().transport.driver_type
        return app.connection_for_write(transport_options=_transport_options(app, driver))
    except ValueError:
        # Its text may hold a part of the password.
        raise PublishError(
            f"broker_url of app {app.main!r} is not a URL: is a special character of the password not "
            f"percent-encoded?; {NOT_SENT}"
        ) from None


def _transport_options(app: Celery, driver: str) -> dict[str, Any]:
    given = dict(app.conf.broker_transport_options or {})
    if driver == "amqp":
        bounds = {"read_timeout": SOCKET_SECONDS, "write_timeout": SOCKET_SECONDS}
        return {**bounds, **given, "confirm_publish": True}
    if driver == "redis":
        bounds = {"socket_timeout": SOCKET_SECONDS, "socket_connect_timeout": SOCKET_SECONDS}
        # A client that retries by itself has stored one message eleven times when replies were lost.
        return {**bounds, **given, "retry_on_timeout": False}
    return given
