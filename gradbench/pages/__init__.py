"""Pages and files that people read, made from the tables of a run: the report, and tables for other programs."""
