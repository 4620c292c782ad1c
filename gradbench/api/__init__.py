"""What `import gradbench as gb` offers: one cell, systems and rules of the caller, suites, and the results of a run."""
