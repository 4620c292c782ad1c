"""A system in motion: its field with the derivatives, the free phase, and how a loop of steps is executed."""
