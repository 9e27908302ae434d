"""Compiles the DAG for a cluster: python pipeline/compile.py [--cluster FILE] [--output FILE].

Upload the file in Kubeflow Pipelines, or give it to pipeline/submit.py or pipeline/schedule.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kfp import compiler

from pipeline.cluster.config import Cluster
from pipeline.cluster.load import load_cluster
from pipeline.pipeline import make_pipeline

COMPILED = Path(__file__).with_name("must_pipeline.yaml")
CLUSTER = Path(__file__).with_name("cluster.yaml")


def compile_pipeline(cluster: Cluster, output: Path) -> None:
    """Writes the compiled pipeline; the same source and cluster give the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(make_pipeline(cluster), str(compiled))
        output.write_bytes(compiled.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", type=Path, default=CLUSTER, help=f"what the cluster is like [{CLUSTER.name}]")
    parser.add_argument("--output", type=Path, default=COMPILED, help=f"the compiled pipeline [{COMPILED.name}]")
    options = parser.parse_args()
    try:
        compile_pipeline(load_cluster(options.cluster), options.output)
    except (ValueError, OSError) as error:
        print(f"compile: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    size = options.output.stat().st_size
    print(f"{options.output}: {size:,} bytes, for {options.cluster}")


if __name__ == "__main__":
    main()
