"""What a worker process raises means what it would mean in this one, and a killed one is an error that may pass."""

import errno
import gc
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from torch.utils.data import DataLoader

from must.base.errors import UserError
from must.base.processes import Job, KilledWorkerError, Workers, killed_workers, write_note
from must.base.program import BUG, PREEMPTED, WRONG_INPUT, find_exit_code, format_error
from must.base.storage import UnreachableError
from must.data.loader import iterate

FAULTS: dict[str, tuple[Exception | None, int, str]] = {
    "input": (UserError("--source x: cannot be read"), WRONG_INPUT, "--source x: cannot be read"),
    "full disk": (OSError(errno.ENOSPC, "No space left", "out/0.tar"), WRONG_INPUT, "out/0.tar: No space left"),
    "transient": (UnreachableError("gs://bucket/x: the server"), PREEMPTED, "gs://bucket/x: the server"),
    "bug": (json.JSONDecodeError("no value", "{", 1), BUG, ""),
    "killed": (None, PREEMPTED, "a worker process was killed, most likely because the memory was full; run the same "),
}


def fail(how: str) -> int:
    if error := FAULTS[how][0]:
        raise error
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def of_a_pool(how: str) -> Iterator[int]:
    with Workers(2) as workers:
        yield from workers.run(fail, [(how,), (how,)])


def of_a_loader(how: str) -> Iterator[int]:
    with killed_workers():
        yield from iterate(DataLoader([how] * 8, batch_size=None, num_workers=1, collate_fn=fail))


@pytest.mark.parametrize("where", [of_a_pool, of_a_loader])
@pytest.mark.parametrize("how", FAULTS)
def test_a_fault_of_a_worker_keeps_its_meaning(where: Callable[[str], Iterator[int]], how: str) -> None:
    before = multiprocessing.active_children()
    gc.disable()
    try:
        with pytest.raises(Exception) as error:
            list(where(how))
        assert multiprocessing.active_children() == before, "none waits for garbage to be collected"
    finally:
        gc.enable()
    _, code, line = FAULTS[how]
    assert find_exit_code(error.value) == code
    if code != BUG and not (where is of_a_loader and how == "full disk"):  # torch keeps the text alone
        assert format_error(error.value).startswith(line)
    assert isinstance(error.value, KilledWorkerError) == (how == "killed")


@pytest.mark.parametrize("count", [1, 2])
def test_each_job_has_one_result_and_workers_can_be_used_again(count: int) -> None:
    with Workers(count) as workers:
        for jobs in (20, 0, 20):
            assert sorted(workers.run(abs, ((-n,) for n in range(jobs)))) == list(range(jobs))


def crash_at(number: int, bad: int) -> int:
    write_note(b"at %d" % number)
    if number == bad:
        os.kill(os.getpid(), signal.SIGPROF)
    return number


def test_a_job_whose_worker_has_died_is_exchanged_and_the_others_go_on() -> None:
    died: list[tuple[Job, int | None, bytes]] = []

    def again(job: Job, exit_code: int | None, note: bytes) -> Job:
        died.append((job, exit_code, note))
        return (job[0] + 100, -1)

    with Workers(2) as workers:
        assert sorted(workers.run(crash_at, [(n, 3) for n in range(8)], again)) == [0, 1, 2, 4, 5, 6, 7, 103]
    assert died == [((3, 3), -signal.SIGPROF, b"at 3")]
