"""The order of a plan is a function of the names, and its memory does not follow their number."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from must.data.shards.listing import read_chunk, shuffle
from must.data.sources.base import Item


def items(count: int) -> list[Item]:
    return [Item(f"folder-{number % 7}/{number}.jpg", number, None, None, 0) for number in range(count)]


def test_chunks_hold_every_item_once_and_mix_the_folders(tmp_path: Path) -> None:
    plan = shuffle(items(1050), tmp_path, 100)
    chunks = [list(read_chunk(plan.path, start, stop)) for start, stop in pairwise(plan.starts)]
    assert [len(chunk) for chunk in chunks] == [100] * 10 + [50]
    assert sorted(item for chunk in chunks for item in chunk) == sorted(items(1050))
    shares = [shuffle(items(1050), tmp_path, 100, (number, 3)) for number in (1, 2, 3)]
    assert sum(share.share for share in shares) == plan.share == plan.total == shares[0].total
    assert all(300 < share.items < 400 for share in shares)
    assert all(len({item.name.split("/")[0] for item in chunk}) == 7 for chunk in chunks)


@pytest.mark.slow
def test_a_plan_of_many_names_needs_no_more_memory(tmp_path: Path) -> None:
    """200,000 names as Python objects would be 60 MB."""
    code = """
import resource, sys
from itertools import pairwise
from pathlib import Path
from must.data.shards.listing import shuffle
from must.data.sources.files import Item
small = Path(sys.argv[1]) / "small"
small.mkdir()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
shuffle((Item(f"{n}.jpg", n, None, None, 0) for n in range(1000)), small, 100)
before = peak()
shuffle((Item(f"some/folder/{n:012d}.jpg", n, None, None, 0) for n in range(200_000)), Path(sys.argv[1]), 1000)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 12, done.stdout
