"""An emitter whose handlers run in the threads or processes of an executor."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Self

from pyventus.emission import Emission
from pyventus.emitters.base import EventEmitter, find_handlers_here, linker_of, logger, seconds_until
from pyventus.errors import EmitError, InvalidOption, NotSerializable, PyventusError
from pyventus.handlers import EventHandler
from pyventus.linkers import EventLinker
from pyventus.running import Job, handler_context, is_expired, job_of, jobs_of, run_in_thread


class ExecutorEventEmitter(EventEmitter):
    """Runs each handler in a thread or process of an executor; ``async def`` ones on one loop per process.

    As a context manager it waits, when left, for what was emitted, retries included, and shuts its executor down.

    Args:
        executor: a `ThreadPoolExecutor` or `ProcessPoolExecutor`; default: threads of its own. To a process go the
            emission and references to the callbacks, so both must be picklable.
        event_linker: the linker whose handlers run.
        debug: log each emission at INFO.
    """

    def __init__(
        self,
        executor: Executor | None = None,
        event_linker: type[EventLinker] = EventLinker,
        debug: bool | None = None,
    ) -> None:
        super().__init__(event_linker, debug)
        if executor is not None and not isinstance(executor, Executor):
            raise InvalidOption(f"executor must be a ThreadPoolExecutor or a ProcessPoolExecutor, not {executor!r}")
        self._executor = executor or ThreadPoolExecutor(thread_name_prefix="pyventus")
        self._waiting = _Waiting()

    def _process(self, emission: Emission) -> None:
        linker = linker_of(emission, self._linker)
        context = handler_context(emission)
        context.run(self._waiting.enter)
        if delay := seconds_until(emission.due):
            self._pack(emission, linker.find_handlers(emission))  # What cannot be sent is refused now.
            self._submit_in(delay, linker, emission, context)
        else:
            self._submit(linker, emission, context)

    def _submit_in(self, delay: float, linker: type[EventLinker], emission: Emission, context: Context) -> None:
        self._waiting.add()
        _start_timer(delay, self._submit_late, linker, emission, context)

    def _submit_late(self, linker: type[EventLinker], emission: Emission, context: Context) -> None:
        try:
            self._submit(linker, emission, context)
        except Exception as error:
            logger.error("Emission %s of %r is lost: %r", emission.id, emission.event, error)
        finally:
            self._waiting.discard()

    def _submit(self, linker: type[EventLinker], emission: Emission, context: Context) -> None:
        if is_expired(emission):
            return
        handlers = find_handlers_here(linker, emission)
        packed = self._pack(emission, handlers)
        for job in jobs_of(linker, handlers, emission, context):
            self._waiting.add()
            try:
                self._start(job, packed.get(job.handler))
            except RuntimeError as error:
                self._waiting.discard()
                raise EmitError(f"emission {emission.id} cannot run: {error}", emission) from error

    def _start(self, job: Job, packed: bytes | None) -> None:
        run, what = (_run_in_thread, job) if packed is None else (_run_in_process, packed)
        future: Future[float | None] = self._executor.submit(run, what)  # type: ignore[arg-type]
        future.add_done_callback(self._finished(job))

    def _pack(self, emission: Emission, handlers: Iterable[EventHandler]) -> dict[EventHandler, bytes]:
        """What goes to other processes, pickled before ``emit`` returns.

        The executor itself would pickle in a thread of its own, too late to tell the caller, and a process that cannot
        unpickle what it is sent would die and take the executor with it.
        """
        if not isinstance(self._executor, ProcessPoolExecutor):
            return {}
        return {handler: _pickled(emission, handler) for handler in handlers}

    def _finished(self, job: Job) -> Callable[[Future[float | None]], None]:
        def go_on(future: Future[float | None]) -> None:
            error = "it was cancelled" if future.cancelled() else future.exception()
            if error is not None:
                self._lose(job, error)
            elif (again := future.result()) is not None:
                _start_timer(again, self._start_again, job.next())
            else:
                self._waiting.discard()

        return go_on

    def _start_again(self, job: Job) -> None:
        if is_expired(job.emission):
            self._waiting.discard()
            return
        try:
            self._start(job, self._pack(job.emission, [job.handler]).get(job.handler))
        except Exception as error:
            self._lose(job, error)

    def _lose(self, job: Job, error: object) -> None:
        emission = job.emission
        logger.error("Handler %s was lost on emission %s of %r: %s", job.handler.id, emission.id, emission.event, error)
        self._waiting.discard()

    def drain(self) -> None:
        """Wait until all that was emitted has run, what handlers in this process emit meanwhile included.

        Raises:
            PyventusError: it was called inside a handler, for which it would wait for ever.
        """
        self._waiting.wait()

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Shut the executor down; with ``wait``, after all that was emitted has run.

        Args:
            wait: whether to return only then.
            cancel_futures: let handlers that have not started never start.
        """
        if wait and not cancel_futures:
            self.drain()
        self._executor.shutdown(wait=wait, cancel_futures=cancel_futures)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()


class _Waiting:
    """Counts what has been emitted and has not run yet."""

    #: Those inside whose handlers we are.
    _around: ContextVar[frozenset[_Waiting]] = ContextVar("pyventus.waiting", default=frozenset())

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def enter(self) -> None:
        self._around.set(self._around.get() | {self})

    def add(self) -> None:
        with self._changed:
            self._count += 1

    def discard(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        if self in self._around.get():
            raise PyventusError("drain() was called inside a handler of the same emitter, and would wait for itself")
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0)


def _start_timer(seconds: float, function: Callable[..., object], *args: object) -> None:
    timer = threading.Timer(seconds, function, args)
    timer.daemon = True
    timer.start()


def _run_in_thread(job: Job) -> float | None:
    return run_in_thread(job).again


def _run_in_process(packed: bytes) -> float | None:
    emission, handler = pickle.loads(packed)  # noqa: S301 - what `_pickled` made in the process that started this one
    return run_in_thread(job_of(handler, emission, handler_context(emission))).again


def _pickled(emission: Emission, handler: EventHandler) -> bytes:
    try:
        return pickle.dumps((emission, handler))
    except Exception as error:
        raise NotSerializable(
            f"emission {emission.id} of {emission.event!r} or its handler {handler.id} cannot go to another process: "
            f"{error}; use functions of a module and picklable arguments, or a ThreadPoolExecutor"
        ) from error
