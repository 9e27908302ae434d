"""`must verify`: whether this machine's GPUs do what the docs promise; a table, and JSON to attach to an issue.

Every check is a process of its own (`must.api.verify.single`): a CUDA error leaves a process of no use, and one that
hangs is ended at its time limit. With the device "cpu" the same checks run on tiny models: they try the checks
themselves, which is how the tests know that there is no slip in them.
"""
