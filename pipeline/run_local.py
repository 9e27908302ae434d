"""Runs the compiled DAG on this machine: python pipeline/run_local.py --parameters FILE.yaml --output FOLDER.

The same as `must-pipeline run`, from a checkout that need not be installed.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "components"), str(HERE.parent)]

from must_pipeline.run_local import main

if __name__ == "__main__":
    main()
