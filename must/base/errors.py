"""The exceptions of must. Any other exception that ends a must program is a bug: exit code 1 and a traceback.

    Exception
     └─ MustError
         ├─ UserError             2   the input is wrong; the message is one line: what, where, what to do
         ├─ TransientError       75   temporary: the same command may work later, and resumes
         │   ├─ UnreachableError      a server did not answer for minutes (base/storage)
         │   └─ KilledWorkerError     a worker process was killed (base/processes)
         ├─ HeldError, LockLostError  73: another run is writing there (base/lock)
         └─ ParityError                1: an exported file computes something else than PyTorch (must/exporting)

The numbers are the exit codes of base/program. All these classes are also ValueErrors, for callers that catch those.
Subclasses of UserError are defined in the modules that raise them.

Any function may raise UserError: inputs are checked where they are read, with `require`. Docstrings name other errors,
and what is special about this one."""


class MustError(Exception):
    """The base class."""


class UserError(MustError, ValueError):
    """Wrong input, which the user can correct. The message is one line."""


class TransientError(MustError, ValueError):
    """A temporary error, not caused by the input: the same command may work later, and resumes."""
