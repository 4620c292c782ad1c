"""What breaks a run, tried in turn: kills, calls that fail, damaged files, edits between two starts, malformed input.

`make crashtest` runs all of it, and tests/test_crash.py a share. Every campaign draws from a seed that it prints, and a
failure prints the command that repeats it.
"""
