"""`soma-eval demo`: start with command.py."""
