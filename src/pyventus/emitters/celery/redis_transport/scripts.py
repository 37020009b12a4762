"""The Lua scripts, each of which Redis runs as one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

#: Sends one command and returns the reply.
Execute = Callable[..., Any]


class Script:
    """A script; Redis is sent its text only when it does not know it, as after a restart."""

    def __init__(self, name: str) -> None:
        self.text = files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
        self._sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, execute: Execute, keys: Sequence[Any], *args: Any) -> Any:
        try:
            return execute("EVALSHA", self._sha, len(keys), *keys, *args)
        except NoScriptError:
            return execute("EVAL", self.text, len(keys), *keys, *args)


FETCH = Script("fetch")
RESTORE = Script("restore")
PARK = Script("park")
PROMOTE = Script("promote")
BEAT = Script("beat")
DEAD = Script("dead")
BURY = Script("bury")
