"""Relaxing systems. The registry finds every module here: add one file to add a system."""

from gradbench.listing import listing

listing(__name__)
