"""What comes before the three parts: facts of the machine, and weights at full size."""
