"""How many connections a server has at a time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """With `limit` and more of them every request is answered with 503."""

    limit: int | None = None
