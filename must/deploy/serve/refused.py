"""A request that is not answered as asked: the status and the line that its client gets."""

from must.base.text import printable

LONGEST = 400  # characters of a reason, which may quote what the client sent


class Refused(Exception):  # noqa: N818, it is the request's fault more often than ours
    """`status` is HTTP's; `retry`: the same may work in a moment."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, printable(reason, LONGEST)
        super().__init__(self.reason)

    @property
    def retry(self) -> bool:
        return self.status == 503


def wanted(condition: bool, reason: str, status: int = 400) -> None:
    """Raises Refused unless the condition holds."""
    if not condition:
        raise Refused(status, reason)
