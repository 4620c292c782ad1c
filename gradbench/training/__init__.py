"""Training with a gradient rule: every seed at once, watched by its fidelity to backpropagation through time."""
