"""Tables of any bytes: they cost what they should, are read or named, and end no program."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MEASURE = r"""
import re, sys
from must.data.sources.base import ListingReport
from must.data.shards.listing import open_source
from must.data.sources import tables
import pyarrow.parquet
from pathlib import Path
tables.EXPANDED, tables.AT_ONCE = 20_000_000, 20_000_000  # in place of a gigabyte and of 100 MB
def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]) / 1000
before, source = peak(), open_source(sys.argv[1], "none", "--source")
source.prepare(Path(sys.argv[2]))
try:
    print(sum(item.size for item in source.items(ListingReport(lambda name, reason: None))))
except ValueError as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_table_that_expands_is_refused_in_memory_of_a_few_values(tmp_path: Path, dictionary: bool) -> None:
    """2 kB that hold 32 times the same 4 MB: as one value of a dictionary, or one after the other."""
    values = pa.array([bytes(4_000_000)] * 32, pa.large_binary())
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet", compression="zstd", use_dictionary=dictionary)
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.parquet"), str(tmp_path / "work")]
    said, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said.endswith("its rows are more than 100 times as large as itself")
    assert float(peak) < 150


EVERY_BYTE = r"""
import sys
from pathlib import Path
from must.data.sources.base import ListingReport
from must.data.shards.listing import open_source
path = Path(sys.argv[1])
whole, read = path.read_bytes(), 0
for place in range(len(whole)):
    for value in {0, 255, whole[place] ^ 1, whole[place] ^ 2} - {whole[place]}:
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        source = open_source(str(path), "none", "--source")
        source.prepare(Path(sys.argv[2]))
        try:
            read += len(list(source.items(ListingReport(lambda name, reason: None))))
        except ValueError:
            pass
print(read)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_no_changed_byte_ends_the_program(tmp_path: Path, kind: str) -> None:
    """In a program of its own: what pyarrow does not catch itself aborts it."""
    table = pa.table({"image": [b"one", None, b"three"], "label": ["a", "b", None]})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", EVERY_BYTE, str(tmp_path / f"a.{kind}"), str(tmp_path / "work")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and int(result.stdout) > 100, result.stderr
