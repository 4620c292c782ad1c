"""What `run`, `explain`, `tune`, `train` and `--profile` do, wired from the rooms below. None decides a number."""
