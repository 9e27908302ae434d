"""What must raises on purpose. Any other exception that ends a program of ours is a bug: exit code 1, and a traceback.

    Exception
     └─ MustError
         ├─ UserError             2   the input is wrong; the message is one line: what, where, what to do
         ├─ TransientError       75   not wrong: the same command may work later and goes on where it was
         │   ├─ UnreachableError      a server did not answer for minutes (base/storage)
         │   └─ KilledWorkerError     a worker process was killed (base/workers)
         └─ HeldError, LockLostError  73: another run is writing there (base/lock)

The numbers are the exit codes that base/exits gives. All of them are ValueErrors, too, for callers that catch those.
Kinds of UserError that callers tell apart are in the modules that raise them.
"""


class MustError(Exception):
    """The base of all."""


class UserError(MustError, ValueError):
    """Wrong input, which its giver can correct. The message is one line."""


class TransientError(MustError, ValueError):
    """A transient error, not one of input: the same command may work later, and goes on where it was."""
