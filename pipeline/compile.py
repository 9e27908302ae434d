"""Compiles the DAG for a cluster: python pipeline/compile.py [--cluster FILE] [--output FILE].

The same as `must-pipeline compile`, from a checkout that need not be installed.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "components"), str(HERE.parent)]

from must_pipeline.compile import main

if __name__ == "__main__":
    main(HERE / "must_pipeline.yaml")
