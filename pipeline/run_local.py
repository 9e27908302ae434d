"""`must-pipeline run` from a checkout: python pipeline/run_local.py --parameters FILE.yaml --output FOLDER."""

import checkout

if __name__ == "__main__":
    checkout.call("run")
