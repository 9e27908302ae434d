"""Scheduled retraining: python pipeline/schedule.py apply pipeline/schedule.yaml.

The same as `must-pipeline schedule`, from a checkout that need not be installed.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "components"), str(HERE.parent)]

from must_pipeline.schedule import main

if __name__ == "__main__":
    main()
