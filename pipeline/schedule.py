"""`must-pipeline schedule` from a checkout: python pipeline/schedule.py apply pipeline/schedule.yaml."""

import checkout

if __name__ == "__main__":
    checkout.call("schedule")
