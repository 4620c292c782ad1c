"""What is asked: suites in TOML, the cells that suites plan, and how cells share work. No torch."""
