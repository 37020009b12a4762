"""From an emission to signed text and back."""

from pyventus.wire.base import Serializer
from pyventus.wire.batch import is_batch, pack, unpack
from pyventus.wire.envelope import Envelope, open_envelope, seal
from pyventus.wire.json import JSONSerializer
from pyventus.wire.keyring import Keyring
from pyventus.wire.pickle import PickleSerializer

__all__ = [
    "Envelope",
    "JSONSerializer",
    "Keyring",
    "PickleSerializer",
    "Serializer",
    "is_batch",
    "open_envelope",
    "pack",
    "seal",
    "unpack",
]
