"""Fuzzes one target in this process: python -m tests.fuzz.one TARGET SECONDS FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

# Libraries are followed where a target is about them; to instrument all of Pillow takes longer than a short run.
LIBRARIES = {"tar": ["tarfile"], "zip": ["zipfile"], "csv": ["csv"], "image": ["PIL"], "classes": ["yaml"]}

with atheris.instrument_imports(include=["must", "json", *LIBRARIES.get(sys.argv[1], ())]):
    from tests.fuzz.targets import TARGETS, run


def main(name: str, seconds: str, folder: str) -> None:
    target, corpus = TARGETS[name], Path(folder) / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-max_len={target.longest}", "-timeout=20", "-rss_limit_mb=3000"]
    found = f"-artifact_prefix={folder}/found-{name}-"
    atheris.Setup([sys.argv[0], *limits, found, "-print_final_stats=1", str(corpus)], lambda data: run(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
