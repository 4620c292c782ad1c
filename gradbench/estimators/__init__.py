"""Gradient estimators. The registry finds every module here: add one file to add an estimator."""
