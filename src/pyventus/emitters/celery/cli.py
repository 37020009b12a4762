"""What Pyventus adds to Celery's command line: ``celery -A app pyventus ...``."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pyventus.emitters.celery.check import check_command
from pyventus.errors import PyventusError, Refused, escape

if TYPE_CHECKING:
    from pyventus.dead_letters.base import DeadLetter
    from pyventus.emitters.celery.queue import Queue
    from pyventus.emitters.celery.replay import DeadLetters, Replay

SHORT_ID = 8
NARROWEST_ERROR = 20
WIDEST_CELL = 40
HEADERS = ("ID", "DIED (UTC)", "REASON", "EVENT", "HANDLERS", "ATTEMPTS", "ERROR")


@click.group()
def pyventus() -> None:
    """Look after the emission queues of an app."""


pyventus.add_command(check_command)


@pyventus.group()
def dead() -> None:
    """Dead letters: emissions that could not be handled, kept to be looked at and replayed."""


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """What all commands have: two options, the dead letters that these choose, and errors in one line."""

    @click.option("--queue", "name", metavar="NAME", help="The emission queue, if the app has several.")
    @click.option("--refused", is_flag=True, help="Messages that were refused as not signed for the queue, instead.")
    @functools.wraps(function)
    def run(name: str | None, refused: bool, **options: Any) -> None:
        try:
            queue = _queue(click.get_current_context().obj.app, name)
            function(queue.dead_letters, refused=refused, **options)
        except PyventusError as error:
            raise click.ClickException(escape(str(error))) from None

    return run


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_ids_argument = functools.partial(click.argument, "prefixes", metavar="ID...", nargs=-1)


@dead.command("list")
@_command
@_json_option
def list_letters(letters: DeadLetters, *, refused: bool, as_json: bool) -> None:
    """List dead letters, oldest first, without changing any."""
    found = letters.list(refused=refused)
    if as_json:
        _print_json([_data(letter) for letter in found])
    elif found:
        _print_table([HEADERS, *_rows(found)])
    else:
        _print("There are none.")


@dead.command()
@_command
@_json_option
@click.option("--arguments", is_flag=True, help="Decode and print the arguments too, if the signature verifies.")
@click.argument("prefix", metavar="ID")
def show(letters: DeadLetters, *, refused: bool, as_json: bool, arguments: bool, prefix: str) -> None:
    """Show one dead letter. Of its ID the beginning is enough."""
    letter = _find_one(letters.list(refused=refused), prefix)
    data = {**_data(letter), "traceback": letter.traceback, "signature": _signature(letters, letter)}
    if arguments:
        data |= _arguments(letters, letter)
    if as_json:
        _print_json(data)
    else:
        _print_letter(data)


@dead.command()
@_command
@_ids_argument()
@click.option("--all", "everything", is_flag=True, help="Replay all of them, oldest first.")
def replay(letters: DeadLetters, *, refused: bool, prefixes: Sequence[str], everything: bool) -> None:
    """Run the handlers that failed again, and remove the dead letters.

    The emissions go to the queue as new messages, their attempts start anew. What is not signed with a key that the
    queue has today stays where it is. Exit status 1 if anything could not be replayed.
    """
    _check_choice(prefixes, everything)
    if everything:
        _report(letters.replay_all(refused=refused), {})
    else:
        ids, unknown = _find(letters.list(refused=refused), prefixes)
        _report(letters.replay(*ids, refused=refused), unknown)


@dead.command()
@_command
@_ids_argument(required=True)
def remove(letters: DeadLetters, *, refused: bool, prefixes: Sequence[str]) -> None:
    """Remove dead letters for good. Exit status 1 if one was not found."""
    ids, unknown = _find(letters.list(refused=refused), prefixes)
    _print(f"{letters.remove(*ids, refused=refused)} removed.")
    _fail(unknown)


@dead.command()
@_command
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(letters: DeadLetters, *, refused: bool, yes: bool) -> None:
    """Remove all dead letters for good."""
    if not yes:
        count = len(letters.list(refused=refused))
        click.confirm(f"Remove all {'refused messages' if refused else 'dead letters'} ({count}) for good?", abort=True)
    _print(f"{letters.purge(refused=refused)} removed.")


# -- Finding queue and letters --------------------------------------------------------------------------------------


def _queue(app: Any, name: str | None) -> Queue:
    queues = {queue.name: queue for queue in _queues_of(app)}
    if not queues:
        raise PyventusError(f"app {app.main!r} has no emission queue: does its module make a CeleryEventEmitter.Queue?")
    names = ", ".join(sorted(queues))
    if name is None and len(queues) > 1:
        raise PyventusError(f"app {app.main!r} has several emission queues: choose one with --queue: {names}")
    if name is not None and name not in queues:
        raise PyventusError(f"app {app.main!r} has no emission queue {name!r}, but: {names}")
    return queues[name] if name is not None else next(iter(queues.values()))


def _queues_of(app: Any) -> Sequence[Queue]:
    from pyventus.emitters.celery.queue import _queues

    # A queue, and the classes that arguments have, may be in modules that only workers import.
    app.loader.import_default_modules()
    return _queues.get(app, ())


def _find(letters: Sequence[DeadLetter], prefixes: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The ids that the prefixes stand for, and what is to be said of the prefixes that stand for none."""
    ids: list[str] = []
    unknown: dict[str, str] = {}
    for prefix in prefixes:
        matching = _matching([letter.id for letter in letters], prefix)
        if len(matching) == 1:
            ids += matching
        else:
            unknown[prefix] = f"{len(matching)} IDs begin so: give more of it" if matching else "there is no such ID"
    return ids, unknown


def _matching(ids: Sequence[str], prefix: str) -> list[str]:
    return [prefix] if prefix in ids else [id for id in ids if prefix and id.startswith(prefix)]


def _find_one(letters: Sequence[DeadLetter], prefix: str) -> DeadLetter:
    ids, unknown = _find(letters, [prefix])
    if unknown:
        raise PyventusError(f"{prefix}: {unknown[prefix]}")
    return next(letter for letter in letters if letter.id == ids[0])


def _check_choice(prefixes: Sequence[str], everything: bool) -> None:
    if bool(prefixes) == everything:
        raise click.UsageError("Name the dead letters to replay, or give --all.")


# -- What is said of a letter ---------------------------------------------------------------------------------------


def _data(letter: DeadLetter) -> dict[str, Any]:
    """All of it but its text, in which the arguments are, and its traceback."""
    hidden = ("text", "traceback")
    data = {field.name: getattr(letter, field.name) for field in fields(letter) if field.name not in hidden}
    return {**data, "died": None} if letter.reason == "unreadable" else data


def _signature(letters: DeadLetters, letter: DeadLetter) -> str:
    try:
        letters.open(letter)
    except Refused as refusal:
        return f"does not verify, so that it cannot be replayed: {refusal}"
    return "verifies"


def _arguments(letters: DeadLetters, letter: DeadLetter) -> dict[str, Any]:
    emission = letters.open(letter).decode()
    return {
        "args": [*map(_repr, emission.args)],
        "kwargs": {name: _repr(emission.kwargs[name]) for name in emission.kwargs},
    }


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # of the user's class
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"


def _report(result: Replay, unknown: dict[str, str]) -> None:
    failed = {**result.failed, **unknown}
    _print(f"{len(result.replayed)} replayed" + (f", {len(failed)} not:" if failed else "."))
    _fail(failed)


def _fail(reasons: dict[str, str]) -> None:
    for id, reason in reasons.items():
        _print(f"  {escape(id)}  {escape(reason)}", err=True)
    if reasons:
        sys.exit(1)


# -- Printing -------------------------------------------------------------------------------------------------------


def _print(text: str, err: bool = False) -> None:
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)


def _print_json(data: object) -> None:
    click.echo(json.dumps(data, indent=2, default=datetime.isoformat))


def _rows(letters: Sequence[DeadLetter]) -> list[tuple[str, ...]]:
    length = _id_length([letter.id for letter in letters])
    return [
        (
            escape(letter.id[:length]),
            _moment(letter.died) if letter.reason != "unreadable" else "-",
            letter.reason,
            _cut(escape(letter.event) or "-", WIDEST_CELL),
            _cut(escape(_handlers(letter.handlers)), WIDEST_CELL),
            str(letter.attempt) if letter.event else "-",
            escape(letter.error),
        )
        for letter in letters
    ]  # fmt: skip


def _id_length(ids: Sequence[str]) -> int:
    """How much of the ids tells them apart."""
    longest = max(map(len, ids))
    return next(
        (length for length in range(SHORT_ID, longest) if len({id[:length] for id in ids}) == len(ids)), longest
    )


def _handlers(handlers: Sequence[str]) -> str:
    if not handlers:
        return "-"
    return handlers[0] if len(handlers) == 1 else f"{handlers[0]} +{len(handlers) - 1}"


def _moment(moment: datetime) -> str:
    try:
        return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "seconds")
    except OverflowError:  # a forged one
        return moment.isoformat()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """A table whose last column has what is left of the terminal; in a file, all that it needs."""
    columns = shutil.get_terminal_size((0, 0)).columns
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    left = max(columns - sum(widths) - 2 * len(widths), NARROWEST_ERROR) if columns else sys.maxsize
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        _print("  ".join([*cells, _cut(row[-1], left)]).rstrip())


LABELS = {
    "id": "ID", "reason": "reason", "event": "event", "handlers": "handlers", "error": "error", "died": "died",
    "timestamp": "emitted", "attempt": "attempts", "replay": "replays", "emission": "emission",
    "message_id": "message", "linker": "linker", "queue": "queue", "signature": "signature", "args": "args",
    "kwargs": "kwargs",
}  # fmt: skip
# Of a message that was refused, or a record that cannot be read, no more is known without its arguments.
UNSIGNED_LABELS = ("id", "reason", "error", "died", "message_id", "queue", "signature", "args", "kwargs")


def _print_letter(data: dict[str, Any]) -> None:
    labels = LABELS if data["event"] else {name: LABELS[name] for name in UNSIGNED_LABELS}
    for name, label in labels.items():
        for number, line in enumerate(_lines(data.get(name))):
            _print(f"{'' if number else label:<10} {escape(line)}")
    if data["traceback"]:
        _print("\n" + "\n".join(escape(line) for line in data["traceback"].rstrip().split("\n")))


def _lines(value: object) -> list[str]:
    match value:
        case None | "" | () | []:
            return []
        case datetime():
            return [f"{_moment(value)} UTC"]
        case dict():
            return [f"{name}={each}" for name, each in value.items()]
        case list() | tuple():
            return [*map(str, value)]
    return [str(value)]
