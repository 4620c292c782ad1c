"""Evidence: how close an estimate is, what its free state is, which status follows, and why an error is what it is."""
