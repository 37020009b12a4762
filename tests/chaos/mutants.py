"""What an attacker makes of envelopes that he has seen: each is one step away from a genuine one."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from random import Random

LOOK_ALIKES = str.maketrans(
    {
        "p": "\N{CYRILLIC SMALL LETTER ER}",
        "e": "\N{CYRILLIC SMALL LETTER IE}",
        "o": "\N{GREEK SMALL LETTER OMICRON}",
        ".": "\N{ONE DOT LEADER}",
        "1": "\N{FULLWIDTH DIGIT ONE}",
        "-": "\N{HYPHEN}",
    }
)
JUNK = ("", ".", "..", "-", "\0", "\n", " ", "=", "é", "\ud800", "\u202e", "[", "]", '"', "{", "0", "1", "A", "pv1.")

Mutator = Callable[[Random, str, str], object]


def flip_a_bit(random: Random, text: str, other: str) -> object:
    at = random.randrange(len(text))
    return text[:at] + chr(ord(text[at]) ^ 1 << random.randrange(8)) + text[at + 1 :]


def cut(random: Random, text: str, other: str) -> object:
    start, end = sorted((random.randrange(len(text)), random.randrange(len(text) + 1)))
    return random.choice((text[:start], text[end:], text[:start] + text[end:], text[start:end]))


def insert(random: Random, text: str, other: str) -> object:
    at = random.randrange(len(text) + 1)
    return text[:at] + random.choice((*JUNK, text, other, text[at:])) + text[at:]


def swap_neighbours(random: Random, text: str, other: str) -> object:
    at = random.randrange(len(text) - 1)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def swap_a_field(random: Random, text: str, other: str) -> object:
    """One that stands between dots: key id, serializer, coding, length."""
    mine, others = text.split(".", 5), other.split(".", 5)
    at = random.randrange(len(mine))
    mine[at] = others[random.choice((at, random.randrange(len(others))))]
    return ".".join(mine)


def splice(random: Random, text: str, other: str) -> object:
    """The head of one, the body of another, the tag of either."""
    prefix, head, body, tag = parts(text)
    _, other_head, other_body, other_tag = parts(other)
    head, body = random.choice(((head, other_body), (other_head, body), (head + other_head, body), ("", body)))
    prefix = prefix.rsplit(".", 1)[0] + f".{random.choice((len(head), len(head) + 1, 0))}"
    return f"{prefix}.{head}{body}.{random.choice((tag, other_tag))}"


def play_with_the_length(random: Random, text: str, other: str) -> object:
    prefix, head, body, tag = parts(text)
    start, length = prefix.rsplit(".", 1)
    number = int(length)
    wrong = (
        number + 1, number - 1, -number, f"0{number}", f"+{number}", f" {number}", f"{number}_0", "9" * 400, 10**9, 0,
        "", f"{number}.0", hex(number), "\N{FULLWIDTH DIGIT ONE}", float(number), "1e2",
    )  # fmt: skip
    return f"{start}.{random.choice(wrong)}.{head}{body}.{tag}"


def change_the_head(random: Random, text: str, other: str) -> object:
    """A field of the head, with a length that fits."""
    prefix, head, body, tag = parts(text)
    fields = json.loads(head)
    values = (None, True, 0, -1, 2**40, 1.5, "x", [], {}, ["x"], {"x": "y"}, "2999-01-01T00:00:00+00:00", "billing")
    fields[random.randrange(len(fields))] = random.choice((*values, random.choice(json.loads(parts(other)[1]))))
    head = json.dumps(fields, separators=random.choice(((",", ":"), (", ", ": "))))
    return f"{prefix.rsplit('.', 1)[0]}.{len(head)}.{head}{body}.{tag}"


def forge_the_tag(random: Random, text: str, other: str) -> object:
    signed, tag = text.rsplit(".", 1)
    at = random.randrange(len(tag))
    # Base64 has spare bits in its last letter, and letters that some decoders take for others.
    forged = (
        tag[:-1] + chr(ord(tag[-1]) + 1), tag + "=", tag.replace("-", "+").replace("_", "/") + " ", tag[:-1], "",
        "A" * 43, tag.swapcase(), tag[::-1], tag[:at] + "é" + tag[at:], other.rsplit(".", 1)[1],
        b64encode(tag.encode()).decode(),
    )  # fmt: skip
    return f"{signed}.{random.choice(forged)}"


def pretend_it_is_unsigned(random: Random, text: str, other: str) -> object:
    fields = text.split(".", 2)
    signed, tag = fields[2].rsplit(".", 1)
    return f"pv1.-.{signed}.{random.choice(('', tag, '.'))}"


def look_alike(random: Random, text: str, other: str) -> object:
    at = random.randrange(len(text))
    end = random.choice((at + 1, at + 20, len(text)))
    return text[:at] + text[at:end].translate(LOOK_ALIKES) + "\N{ZERO WIDTH JOINER}" + text[end:]


def double_separators(random: Random, text: str, other: str) -> object:
    at = random.choice([place for place, letter in enumerate(text) if letter == "."])
    return text[:at] + random.choice(("..", ". ", "\n.", ",", "")) + text[at + 1 :]


def no_text(random: Random, text: str, other: str) -> object:
    return random.choice((None, 5, True, 1.5, [text], {"text": text}, list(text[:50]), [[text]], [], {}))


def grow(random: Random, text: str, other: str) -> object:
    return text + random.choice((" ", ".", "A", text)) * random.choice((1, 10, 300, 1000))


MUTATORS: Sequence[Mutator] = (
    flip_a_bit, cut, insert, swap_neighbours, swap_a_field, splice, play_with_the_length, change_the_head,
    forge_the_tag, pretend_it_is_unsigned, look_alike, double_separators, no_text, grow,
)  # fmt: skip


def parts(text: str) -> tuple[str, str, str, str]:
    """What stands before the head, head, body, tag."""
    *front, rest = text.split(".", 5)
    end = int(front[-1])
    body, tag = rest[end:].rsplit(".", 1)
    return ".".join(front), rest[:end], body, tag


def mutant(random: Random, text: str, other: str) -> object:
    """One that differs from both."""
    while True:
        made = random.choice(MUTATORS)(random, text, other)
        if made not in (text, other):
            return made
