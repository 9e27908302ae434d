"""Trackers of training curves besides the log: TensorBoard's files, an MLflow server.

A tracker has three methods: start, log and close (`base.Tracker`). Training uses `fan.Trackers`.
"""
