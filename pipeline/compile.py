"""Compiles the DAG: python pipeline/compile.py [--output FILE]. Upload the file to Kubeflow Pipelines."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kfp import compiler

from pipeline.pipeline import must_pipeline

COMPILED = Path(__file__).with_name("must_pipeline.yaml")


def compile_pipeline(output: Path) -> None:
    """Writes the compiled pipeline; the same source gives the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / output.name
        compiler.Compiler().compile(must_pipeline, str(compiled))
        output.write_bytes(compiled.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=COMPILED, help=f"[{COMPILED.name}]")
    output = parser.parse_args().output
    compile_pipeline(output)
    print(f"{output}: {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
