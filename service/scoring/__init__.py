"""One request from start to end: start with scorer.py."""
