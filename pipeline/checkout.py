"""Runs the commands of `must-pipeline` from a checkout without installing it: used by the scripts beside this file."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "components"), str(HERE.parent)]
from must_pipeline.cli import call

__all__ = ["HERE", "call"]
