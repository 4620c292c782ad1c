"""Evidence about the free state that a gradient was measured at."""
