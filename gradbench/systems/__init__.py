"""Relaxing systems: one file a family. The registry reads every module here, so a new file is a new system.

Abstract classes, and those whose names begin with an underscore, are parts of systems.
"""
