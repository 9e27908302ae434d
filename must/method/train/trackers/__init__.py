"""Where training curves go besides the log: TensorBoard's files, an MLflow server.

A tracker has three methods: start, log and close (`base.Tracker`). `fan.Trackers` is what training talks to.
"""
