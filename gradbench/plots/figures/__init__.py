"""The figures of a run, one file each. A file declares what it draws in `FIGURES`, and `gallery` collects that."""
