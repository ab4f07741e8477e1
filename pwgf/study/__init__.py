"""Studies of solved flows: `accuracy` against exact laws, `compare` of schemes on the same problems."""

from . import accuracy, compare

__all__ = ["accuracy", "compare"]
