"""A message as the worker's main process sees it: what in it is not signed steers nothing."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from celery.app.task import Context
from celery.exceptions import InvalidTaskError, TimeLimitExceeded, WorkerTerminate
from celery.worker.request import Request

from pyventus.emitters.celery.plain_json import loads
from pyventus.errors import Refused

logger = logging.getLogger("pyventus")

HIDDEN_ARGS = "(...)"
HIDDEN_KWARGS = "{}"

#: The fields of Celery's own request that the headers of a message, none of which is signed, may fill. Headers that
#: Celery does not know, such as those of tracing, pass.
_KEPT = frozenset({"eta", "headers", "id", "lang", "origin", "parent_id", "root_id", "task"})
_DROPPED = frozenset(dir(Context)) - _KEPT
#: What are no headers of the user's own.
_CELERYS = frozenset(dir(Context)) | {"lang", "task", "compression"}
_NEUTRAL: dict[str, Any] = {
    "argsrepr": HIDDEN_ARGS,
    "kwargsrepr": HIDDEN_KWARGS,
    "callbacks": None,
    "chain": None,
    "chord": None,
    "errbacks": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "ignore_result": True,
    "replaced_task_nesting": 0,
    "retries": 0,
    "stamped_headers": None,
    "stamps": None,
    "timelimit": [None, None],
}
_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")


class EmissionRequest(Request):
    """The request of an `EmissionTask`."""

    _goes_back = False

    def __init__(self, message: Any, *, headers: Any = None, body: Any = None, **options: Any) -> None:
        # The task has looked at it with `check_message` when it came.
        ([text], _, embed) = message.payload
        # The pool gets these and not the message's own body: its callbacks and chains would run whatever they name.
        body = ([text], {}, {})
        headers = _cleaned(message.headers)
        if headers["eta"] is not None and not _is_sealed(options["task"], text, headers["id"]):
            # It would be held until then, unacknowledged, and another one fetched in its place, without end.
            headers["eta"] = None
        super().__init__(message, headers=headers, body=body, **{**options, "decoded": True})
        if any(map(embed.get, _EMBEDDED)):
            logger.warning("Callbacks of message %.100r dropped: they are not signed", self.id)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """Called when the task has failed or its process has died, and by billiard before `on_timeout`."""
        error = exc_info.exception
        self._goes_back |= isinstance(getattr(error, "exc", error), TimeLimitExceeded)
        return super().on_failure(exc_info, *args, **options)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Called by the pool when a time limit has passed; the hard one kills the process."""
        self._goes_back |= not soft
        super().on_timeout(soft, timeout)

    def cancel(self, *args: Any, **options: Any) -> None:
        """Called at a cold shutdown. To Celery a greenlet that was killed has succeeded; solo cannot end its task."""
        self._goes_back = True
        try:
            super().cancel(*args, **options)
        except NotImplementedError:
            # In a signal handler: as an Exception it would be the handler's own failure.
            raise WorkerTerminate(1) from None

    def acknowledge(self) -> None:
        """Acknowledge, unless a time limit or a cold shutdown has ended it: then the message goes back."""
        if self._goes_back:
            self.reject(requeue=True)
        else:
            super().acknowledge()
            if getattr(self.message.channel, "restores_from_broker", False):
                _empty(self.message)

    def info(self, safe: bool = False) -> Any:
        """What remote control shows: never the arguments."""
        return super().info(safe=True)


def _empty(message: Any) -> None:
    """Let go of what a message holds: it waits for the loop to acknowledge it, and as many with it as were fetched."""
    message._raw = message._decoded_cache = message.body = None
    message.headers = {}


def check_message(message: Any) -> None:
    """Check that it is a list of one text, no keyword arguments, and what is embedded beside the arguments.

    Raises:
        InvalidTaskError: it is not a message of Celery's protocol 2 with one string; the reason holds nothing of it.
    """
    # Celery logs it before anything is verified.
    if _shown(message.headers.get("id")) is None:
        raise InvalidTaskError("its id is not a short printable text")
    try:
        payload = _payload(message)
    except Exception as error:
        raise InvalidTaskError(f"its body cannot be read: {type(error).__name__}") from None
    match payload:
        case [[str()], {**kwargs}, dict()] if not kwargs:
            return
    raise InvalidTaskError("its body is not a list of one text, no keyword arguments, and what Celery embeds")


def _payload(message: Any) -> Any:
    if message.content_type == "application/json" and isinstance(message.body, bytes):
        message._decoded_cache = loads(message.body.decode())
    return message.payload


def _is_sealed(task: Any, text: str, message_id: str) -> bool:
    try:
        task.emission_queue.open(text, message_id)
    except Refused:
        return False
    return True


def _cleaned(headers: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in headers.items() if name not in _DROPPED}
    return {
        **known,
        **_NEUTRAL,
        "eta": _moment(headers.get("eta")),
        "headers": _custom(known),
        "parent_id": _shown(headers.get("parent_id")),
        "root_id": _shown(headers.get("root_id")),
        "shadow": _shown(headers.get("shadow")),
    }


def _moment(text: object) -> str | None:
    """When Celery is to start it; the task looks at the signed moment."""
    try:
        return datetime.fromisoformat(text).isoformat() if isinstance(text, str) else None
    except ValueError:
        return None


def _custom(known: dict[str, Any]) -> dict[str, Any]:
    """The user's own headers, which Celery looks for in each message in a way that takes longer than to verify it."""
    headers = known.get("headers")
    return headers if isinstance(headers, dict) else {name: known[name] for name in known if name not in _CELERYS}


def _shown(text: object) -> str | None:
    return text if isinstance(text, str) and text.isprintable() and len(text) <= 255 else None
