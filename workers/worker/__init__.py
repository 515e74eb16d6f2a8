"""The inside of a worker process: start with main.py."""
