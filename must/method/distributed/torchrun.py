"""torchrun that exits with the code of the process that ended first, without a long report.

    python -m must.method.distributed.torchrun --nproc-per-node=8 -m must train ...

torchrun itself always exits with 1. A retry policy needs the code: 2, the input is wrong; 75, run the same again.
All options are torchrun's."""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from must.base.console import attach
from must.base.processes import PARENT, end_with_parent
from must.base.program import HELD, PREEMPTED, WRONG_INPUT

logger = logging.getLogger(__name__)

REPORTED_CODES = (WRONG_INPUT, HELD, PREEMPTED)  # exit codes of processes that printed the reason themselves
# Out of memory, the machine was reclaimed, or NCCL's watchdog found that a collective timed out.
KILL_CODES = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT)
SHUTDOWN_TIMEOUT = "120"  # seconds that stopped processes have to save a checkpoint (torchrun: 30)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs torchrun; returns the exit code."""
    attach()
    if PARENT in os.environ:
        end_with_parent()
    os.environ[PARENT] = str(os.getpid())  # for the started processes
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    parser = torchrun.get_args_parser()
    options = list(sys.argv[1:] if arguments is None else arguments)
    if "--shutdown-timeout" in parser.format_help():  # torchrun of some versions
        options = ["--shutdown-timeout", SHUTDOWN_TIMEOUT, *options]
    try:
        torchrun.run(parser.parse_args(options))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        for rank, failure in error.failures.items():
            code = failure.exitcode
            stopped = code == -signal.SIGTERM != first.exitcode  # by torchrun, because the first one had failed
            if code not in REPORTED_CODES and not stopped:
                outcome = f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
                logger.warning(f"rank {rank} (pid {failure.pid}) {outcome}")
        if first.exitcode in KILL_CODES:
            return PREEMPTED
        return first.exitcode if first.exitcode > 0 else 1
    except SignalException:  # passed on to the processes, which saved a checkpoint
        return PREEMPTED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
