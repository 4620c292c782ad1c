"""What is drawn: the random streams of a seed, and images."""
