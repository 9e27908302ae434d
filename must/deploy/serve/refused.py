"""A request that is not answered as asked: the status and the line that its client gets."""

from __future__ import annotations

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


GRPC_STATUS = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""The name of gRPC's code for each status that `Refused` may have."""


def wanted(condition: bool, reason: str, status: int = 400) -> None:
    """Raises Refused unless the condition holds."""
    if not condition:
        raise Refused(status, reason)
