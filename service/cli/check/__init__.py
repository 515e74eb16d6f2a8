"""`soma-eval check`: start with command.py."""
