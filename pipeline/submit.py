"""`must-pipeline submit` from a checkout: python pipeline/submit.py --parameters FILE.yaml."""

import checkout

if __name__ == "__main__":
    checkout.call("submit")
