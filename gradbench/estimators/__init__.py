"""Gradient estimators: one file each. The registry reads every module here, so a new file is a new estimator.

A class that declares a `name` is an estimator. What it runs is in `phases`, what several of them read in `readouts`.
"""
