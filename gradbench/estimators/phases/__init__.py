"""Second phases: what rules run from the free state, each with its costs and what its errors come from."""
