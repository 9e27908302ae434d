"""Compiles the two pipelines beside this file, from a checkout: python pipeline/compile.py, or make compile."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "components"), str(HERE.parent)]
from must_pipeline.cluster import ClusterConfig
from must_pipeline.compile import compile_pipeline
from must_pipeline.dag import make_label_pipeline

if __name__ == "__main__":
    compile_pipeline(ClusterConfig(), HERE / "must_pipeline.yaml")
    compile_pipeline(ClusterConfig(), HERE / "must_label.yaml", make_label_pipeline)
