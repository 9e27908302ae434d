"""Starts a run on Kubeflow Pipelines: python pipeline/submit.py --parameters FILE.yaml.

The same as `must-pipeline submit`, from a checkout that need not be installed.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "components"), str(HERE.parent)]

from must_pipeline.submit import main

if __name__ == "__main__":
    main()
