"""The table of docs/data.md: which behaviour of storage which tests show at which store.

python -m tests.base.storage.table writes it anew; a test compares it with the tests that there are.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
BEGIN, END = "<!-- made by: python -m tests.base.storage.table -->\n", "<!-- end -->\n"
STORES = ("local", "gs", "s3", "az")
BEHAVIOURS = {
    "what is written is read back, whole and by range": "test_written_bytes_are_read_back",
    "a listing names what is below the folder, and nothing else": "test_a_listing_names_files",
    "a listing of many pages, on a server that fails, is complete": "test_a_listing_of_several_pages",
    "a missing file is FileNotFoundError": "test_missing_files_are_missing",
    "moving takes the old name away": "test_moving_takes",
    "a write that breaks off leaves what was there": "test_a_block_that_fails",
    "a write on condition is refused when somebody else wrote": "test_writing_refuses",
    "every call survives 429, 500, 503, lost, cut and slow answers": "test_every_call_survives",
    "a large download is complete, whatever breaks": "test_a_large_download",
    "a long upload goes on where it was, no piece twice": "test_an_upload_longer",
    "wrong bucket: one line": "test_a_missing_bucket_is_one_line",
    "no rights: one line": "test_a_refusal_is_one_line.*no rights",
    "wrong credentials: one line": "test_a_refusal_is_one_line.*wrong credentials",
    "expired or withdrawn credentials: one line": "test_a_refusal_is_one_line.*expired|no_longer_knows_is_one_line",
    "credentials refused for a while, where they have worked: waited for":
        "test_credentials_that_are_refused_for_a_while|renewed_while_the_program_runs",
    "a region that redirects: one line": "test_a_refusal_is_one_line.*another region",
    "the package is missing: one line": "test_without_the_package",
}  # fmt: skip
NONE = {
    ("wrong credentials: one line", "gs"): "as expired",
    ("expired or withdrawn credentials: one line", "az"): "as wrong",
    ("a region that redirects: one line", "gs"): "none there",
    ("a region that redirects: one line", "az"): "none there",
}


def table() -> str:
    found = tests()
    lines = [f"| | {' | '.join(STORES)} |", "|---|" + "---|" * len(STORES)]
    for behaviour, pattern in BEHAVIOURS.items():
        counts = Counter(store_of(test) for test in found if re.search(pattern, test))
        cells = [str(counts[store] or NONE.get((behaviour, store), "")) for store in STORES]
        lines.append(f"| {behaviour} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def store_of(test: str) -> str:
    if "google" in test:
        return "gs"
    if "renewed_while" in test:
        return "s3"
    parameters = re.split(r"[-\[\]:]", test.partition("[")[2])
    return next((store for store in STORES if store in parameters), "")


def tests() -> list[str]:
    """The names of all tests of storage, the slow ones too."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PAGE.parents[1])
    return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]


def with_table(page: str, text: str) -> str:
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + text + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(), table()))
