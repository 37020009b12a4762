"""``celery -A app pyventus dead ...`` as it is typed, and what it says in each case."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from pyventus import Emission
from pyventus.dead_letters.base import DeadLetter
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.celery.cli import dead, pyventus
from pyventus.emitters.celery.replay import DeadLetters
from pyventus.errors import escape
from tests.brokers import RabbitMQ, refused_port
from tests.functional.apps.support import ROOT, SECRET, service

# A title for the window, a colour, a bell, writing from right to left, a C1 control, and half a character.
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x07\u202edetrevni\x9b2J\r\ud800"
ROTATED = "a secret that came later, and is as long as it has to be"


def queue_to(url: str, name: str, secret: Any = SECRET, app: Celery | None = None) -> CeleryEventEmitter.Queue:
    app = app or Celery("typing", broker=url)
    return CeleryEventEmitter.Queue(app, name, secret)


def keep(queue: CeleryEventEmitter.Queue, *args: object, **options: Any) -> DeadLetter:
    emission = Emission(event=options.pop("event", "Asked"), args=args, kwargs={"colour": "red"})
    envelope = queue.open(queue.seal(emission, emission.id), emission.id)
    return queue.dead_letters.keep(
        envelope, "failed", **{"handlers": ["answer"], "error": ValueError("no such order"), **options}
    )


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "999")


@pytest.fixture
def queue(redis_url: str) -> CeleryEventEmitter.Queue:
    return queue_to(redis_url, "orders")


def run(queue: CeleryEventEmitter.Queue, *args: str, **options: Any) -> Result:
    """A command in this process."""
    return CliRunner().invoke(pyventus, ["dead", *args], obj=SimpleNamespace(app=queue.app), **options)


def type_in(url: str, queue: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.functional.apps.dead", "pyventus", "dead", *args],
        cwd=ROOT, env={**os.environ, "TEST_BROKER": url, "TEST_QUEUE": queue, **env},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip


@pytest.fixture
def broker(broker_url: str, queue_name: str, request: pytest.FixtureRequest) -> Iterator[str]:
    yield broker_url
    if broker_url.startswith("amqp"):
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        rabbitmq.delete(f"{queue_name}.dead", f"{queue_name}.refused")


# -- As it is typed -----------------------------------------------------------------------------------------------


def test_from_the_list_to_the_handler(broker: str, queue_name: str, tmp_path: Path) -> None:
    """List, show, replay by the beginning of an id, and the one handler that failed runs in a worker."""
    queue = queue_to(broker, queue_name)
    letter = keep(queue, 7)
    listed = type_in(broker, queue_name, "list")
    assert listed.returncode == 0, listed.stderr
    header, line = listed.stdout.splitlines()
    assert header.split() == ["ID", "DIED", "(UTC)", "REASON", "EVENT", "HANDLERS", "ATTEMPTS", "ERROR"]
    assert re.fullmatch(
        rf"{letter.id[:8]}  [-\d]+ [:\d]+  failed  Asked  answer    1         ValueError: no such order", line
    )
    shown = run(queue, "show", letter.id[:8], "--arguments")
    assert "signature  verifies\nargs       7\nkwargs     colour='red'\n" in shown.stdout
    replayed = type_in(broker, queue_name, "replay", letter.id[:8])
    assert (replayed.returncode, replayed.stdout, replayed.stderr) == (0, "1 replayed.\n", "")
    with service(broker, queue_name, tmp_path, app="dead") as worker:
        log = worker.wait_for("answered (7,) {'colour': 'red'}", "succeeded")
    assert "shouted" not in log
    assert run(queue, "list").stdout == "There are none.\n"


def test_a_hostile_letter_is_harmless(redis_url: str, queue_name: str) -> None:
    """Whatever is in a record, the terminal gets nothing to obey."""
    queue = queue_to(redis_url, queue_name)
    letter = keep(queue, HOSTILE)
    letters: DeadLetters = queue.dead_letters
    names = ("event", "linker", "message_id", "emission", "error", "traceback")
    hostile_id = HOSTILE[:-1]
    letters.store.add(replace(letter, id=hostile_id, handlers=(HOSTILE, HOSTILE), **dict.fromkeys(names, HOSTILE)))
    for args in (["list"], ["list", "--json"], ["show", "\x1b"], ["show", "\x1b", "--json"]):
        result = run(queue, *args)
        assert result.exit_code == 0, result.stderr
        assert "owned" in result.stdout
        assert not obeyed(result.stdout)
    shown = type_in(redis_url, queue_name, "show", letter.id, "--arguments")
    assert "owned" in shown.stdout
    replayed = type_in(redis_url, queue_name, "replay", "\x1b", "\x1b[31m")
    assert replayed.returncode == 1
    assert "owned" in replayed.stderr
    assert not [result for result in (shown, replayed) if obeyed(result.stdout + result.stderr)]


def obeyed(text: str) -> list[str]:
    """What a terminal would not just print."""
    return [each for each in text if not each.isprintable() and each != "\n"]


def test_several_queues(redis_url: str, queue_name: str) -> None:
    keep(queue_to(redis_url, queue_name))
    both = {"TEST_OTHER_QUEUE": f"{queue_name}-other"}
    unclear = type_in(redis_url, queue_name, "list", **both)
    assert unclear.returncode == 1
    assert f"has several emission queues: choose one with --queue: {queue_name}, {queue_name}-other" in unclear.stderr
    assert len(type_in(redis_url, queue_name, "list", "--queue", queue_name, **both).stdout.splitlines()) == 2


def test_a_queue_without_letters(redis_url: str) -> None:
    app = Celery("typing", broker=redis_url)
    first, second = queue_to(redis_url, "first", app=app), queue_to(redis_url, "second", app=app)
    keep(first)
    assert len(run(second, "list", "--queue", "first").stdout.splitlines()) == 2
    assert run(first, "list", "--queue", "second").stdout == "There are none.\n"


def test_a_queue_that_there_is_not(queue: CeleryEventEmitter.Queue) -> None:
    missing = run(queue, "list", "--queue", "mail")
    assert missing.exit_code == 1
    assert "app 'typing' has no emission queue 'mail', but: orders" in missing.stderr


def test_without_colours_of_the_world(redis_url: str, queue_name: str) -> None:
    """A terminal that knows no more than ASCII gets no more."""
    keep(queue_to(redis_url, queue_name), error="Zahlung 5 € fehlt, 日本")
    listed = type_in(redis_url, queue_name, "list", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert listed.returncode == 0, listed.stderr
    assert "Zahlung 5 \\u20ac fehlt, \\u65e5\\u672c" in listed.stdout


# -- What is said ---------------------------------------------------------------------------------------------------


def test_the_list_fits_the_terminal(queue: CeleryEventEmitter.Queue) -> None:
    """What is too long is cut, the error to what is left; into a file it goes whole."""
    keep(queue, event="e" * 99, handlers=["h" * 99, "other", "third"], error="x" * 300)
    keep(queue)
    narrow = run(queue, "list", env={"COLUMNS": "160"}).stdout.splitlines()
    assert max(map(len, narrow)) == 160
    assert all("e" * 39 + "…" in line or "Asked" in line for line in narrow[1:])
    assert narrow[1].endswith("xx…")
    assert len({line.index(text) for line, text in zip(narrow, (" ATTEMPTS", " 1  ", " 1  "), strict=True)}) == 1
    whole = run(queue, "list", env={"COLUMNS": "0"}).stdout.splitlines()
    assert sys.__stdout__.isatty() or whole[1].endswith("x" * 300)


def test_ids_are_as_long_as_they_need_to_be(queue: CeleryEventEmitter.Queue) -> None:
    letter = keep(queue)
    letters: DeadLetters = queue.dead_letters
    letters.store.add(replace(letter, id=letter.id[:12] + "x"))
    lines = run(queue, "list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [letter.id[:13], letter.id[:12] + "x"]


def test_json(queue: CeleryEventEmitter.Queue) -> None:
    """Everything but the text, in which the arguments are."""
    letter = keep(queue, "an argument")
    (listed,) = json.loads(run(queue, "list", "--json").stdout)
    assert listed["id"] == letter.id
    assert datetime.fromisoformat(listed["died"]) == letter.died
    assert listed["handlers"] == ["answer"]
    assert not {"text", "traceback"} & listed.keys()
    shown = run(queue, "show", letter.id, "--json")
    assert json.loads(shown.stdout) == {**listed, "traceback": letter.traceback, "signature": "verifies"}
    assert "an argument" not in shown.stdout
    with_arguments = json.loads(run(queue, "show", letter.id, "--json", "--arguments").stdout)
    assert (with_arguments["args"], with_arguments["kwargs"]) == (["'an argument'"], {"colour": "'red'"})
    assert json.loads(run(queue, "list", "--json", "--refused").stdout) == []


def test_show(queue: CeleryEventEmitter.Queue) -> None:
    letter = keep(queue, "an argument", handlers=["answer", "shout"], traceback="Traceback\n  line 1\n")
    shown = run(queue, "show", letter.id[:9]).stdout
    assert shown.endswith("\n\nTraceback\n  line 1\n")
    assert "handlers   answer\n           shout\nerror      ValueError: no such order\n" in shown
    assert f"died       {letter.died.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC\n" in shown
    assert "an argument" not in shown


def test_arguments_are_decoded_only_if_they_verify(queue: CeleryEventEmitter.Queue, redis_url: str) -> None:
    letter = keep(queue, "an argument")
    rotated = queue_to(redis_url, "orders", ROTATED)
    shown = run(rotated, "show", letter.id)
    assert shown.exit_code == 0
    assert "signature  does not verify, so that it cannot be replayed: it is signed with another key" in shown.stdout
    with_arguments = run(rotated, "show", letter.id, "--arguments")
    assert with_arguments.exit_code == 1
    assert "an argument" not in with_arguments.output


def test_what_was_not_replayed_is_told(queue: CeleryEventEmitter.Queue) -> None:
    """Each with its reason, and in the exit status; the others are replayed all the same."""
    letter, forged = keep(queue), keep(queue)
    letters: DeadLetters = queue.dead_letters
    letters.remove(forged.id)
    letters.store.add(replace(forged, handlers=("shout",)))
    result = run(queue, "replay", "no", letter.id[:10], forged.id)
    assert result.exit_code == 1
    assert result.stdout == "1 replayed, 2 not:\n"
    assert f"  {forged.id}  its record was changed: handlers is not what is signed\n" in result.stderr
    assert "  no  there is no such ID\n" in result.stderr
    assert [each.id for each in letters.list()] == [forged.id]
    assert run(queue, "replay", "--all").exit_code == 1
    letters.purge()
    keep(queue)
    assert run(queue, "replay", "--all").stdout == "1 replayed.\n"
    assert run(queue, "replay", "--all").stdout == "0 replayed.\n"


def test_a_beginning_that_two_have(queue: CeleryEventEmitter.Queue) -> None:
    letter = keep(queue)
    letters: DeadLetters = queue.dead_letters
    letters.store.add(replace(letter, id=letter.id + "0"))
    for command in ("show", "replay", "remove"):
        result = run(queue, command, letter.id[:5])
        assert result.exit_code == 1
        assert "2 IDs begin so: give more of it" in result.stderr
    assert run(queue, "show", "").exit_code == 1
    assert run(queue, "show", letter.id).exit_code == 0
    assert len(letters.list()) == 2


def test_remove(queue: CeleryEventEmitter.Queue) -> None:
    first, second = keep(queue), keep(queue)
    result = run(queue, "remove", first.id[:10], "nope")
    assert (result.exit_code, result.stdout) == (1, "1 removed.\n")
    assert run(queue, "remove", second.id).exit_code == 0


def test_purge_asks(queue: CeleryEventEmitter.Queue) -> None:
    keep(queue)
    keep(queue)
    letters: DeadLetters = queue.dead_letters
    for answer in ("n\n", "\n", ""):
        asked = run(queue, "purge", input=answer)
        assert asked.exit_code == 1
        assert "Remove all dead letters (2) for good?" in asked.stdout
    assert len(letters.list()) == 2
    letters.keep_refused("m", "pv1.", "why")
    assert run(queue, "purge", "--yes").stdout == "2 removed.\n"
    assert len(letters.list(refused=True)) == 1
    assert "1 removed." in run(queue, "purge", "--refused", input="y\n").stdout


def test_refused_ones(queue: CeleryEventEmitter.Queue, redis_url: str) -> None:
    """They can be replayed when the key is back."""
    emitting = queue_to(redis_url, "orders", ROTATED)
    emission = Emission(event="Asked", args=("an argument",))
    letters: DeadLetters = queue.dead_letters
    letters.keep_refused(emission.id, emitting.seal(emission, emission.id), "it is signed with another key")
    (letter,) = letters.list(refused=True)
    assert f"{letter.id[:8]}  " in run(queue, "list", "--refused").stdout
    assert run(queue, "list").stdout == "There are none.\n"
    shown = run(queue, "show", "--refused", letter.id[:8]).stdout
    assert f"message    {emission.id}\n" in shown
    assert "attempts" not in shown
    assert run(queue, "replay", "--refused", letter.id).exit_code == 1
    both = queue_to(redis_url, "orders", [SECRET, ROTATED])
    assert "'an argument'" in run(both, "show", "--refused", letter.id, "--arguments").stdout
    assert run(both, "replay", "--refused", "--all").stdout == "1 replayed.\n"


def test_a_record_that_cannot_be_read(queue: CeleryEventEmitter.Queue, valkey: Any) -> None:
    letter = keep(queue)
    with valkey.client() as client:
        client.hset("pyventus:dead:{orders}:records", letter.id, "garbage")
    assert re.search(
        rf"{letter.id[:8]}  -  +unreadable  -  +-  +-  +its record cannot be read", run(queue, "list").stdout
    )
    assert "signature  does not verify" in run(queue, "show", letter.id).stdout
    assert json.loads(run(queue, "list", "--json").stdout)[0]["died"] is None


def test_wrong_usage(queue: CeleryEventEmitter.Queue) -> None:
    for args in (["replay"], ["replay", "--all", "a"], ["remove"], ["show"]):
        assert run(queue, *args).exit_code == 2
    unknown = CliRunner().invoke(dead, ["list"], obj=SimpleNamespace(app=Celery("empty", broker="memory://")))
    assert "app 'empty' has no emission queue: does its module make a CeleryEventEmitter.Queue?" in unknown.stderr


def test_a_broker_that_is_down() -> None:
    with refused_port() as port:
        result = run(queue_to(f"redis://:s3krit@127.0.0.1:{port}/0", "orders"), "list")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the dead letters of queue 'orders' cannot be reached: ")
    assert "s3krit" not in result.stderr


def test_help_is_there_for_every_command() -> None:
    for args in ([], ["dead"], *(["dead", name] for name in dead.commands)):
        result = CliRunner().invoke(pyventus, [*args, "--help"])
        assert result.exit_code == 0
    assert all(command.help for command in dead.commands.values())


@pytest.mark.parametrize("text", ["plain", "ä 日本 €", "👍"])
def test_escape_leaves_what_can_be_printed(text: str) -> None:
    assert escape(text) == text


def test_escape_leaves_nothing_to_obey() -> None:
    assert escape(HOSTILE) == r"\x1b]0;owned\x07\x1b[31mred\x07\u202edetrevni\x9b2J\r\ud800"
