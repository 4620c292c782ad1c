"""Relaxing systems: one file each. The registry reads every module here, so a new file is a new system.

A class that declares a `name` is a system. Classes without one are parts of systems.
"""
