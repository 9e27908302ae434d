"""`must-pipeline compile` from a checkout: python pipeline/compile.py [--cluster FILE] [--output FILE]."""

import checkout

if __name__ == "__main__":
    checkout.call("compile", "--output", str(checkout.HERE / "must_pipeline.yaml"))
