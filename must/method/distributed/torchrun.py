"""torchrun, but it ends with the exit code of the process that ended first, and without pages about it.

    python -m must.method.distributed.torchrun --nproc-per-node=8 -m must train ...

torchrun itself ends with 1 whatever happened. A retry policy needs to know: 2, the input is wrong;
75, run the same again. Everything else is torchrun's own, options included.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from must.base.console import attach
from must.base.exits import HELD, PREEMPTED, WRONG_INPUT
from must.base.processes import PARENT, end_with_parent

logger = logging.getLogger(__name__)

SPOKEN_FOR = (WRONG_INPUT, HELD, PREEMPTED)  # codes of processes that said themselves what the matter is
FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # memory ran out, or the machine was reclaimed
SHUTDOWN_TIMEOUT = "120"  # seconds that stopped processes have to save a checkpoint (torchrun: 30)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs torchrun; returns the exit code."""
    attach()
    if PARENT in os.environ:
        end_with_parent()
    os.environ[PARENT] = str(os.getpid())  # for the processes that it starts
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    parser = torchrun.get_args_parser()
    options = list(sys.argv[1:] if arguments is None else arguments)
    if "--shutdown-timeout" in parser.format_help():  # torchrun of some versions
        options = ["--shutdown-timeout", SHUTDOWN_TIMEOUT, *options]
    try:
        torchrun.run(parser.parse_args(options))
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode not in SPOKEN_FOR:
            code = first.exitcode
            how = f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
            logger.warning(f"rank {rank} (pid {first.pid}) {how}")
        if first.exitcode in FROM_OUTSIDE:
            return PREEMPTED
        return first.exitcode if first.exitcode > 0 else 1
    except SignalException:  # handed on to the processes, which saved a checkpoint
        return PREEMPTED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
