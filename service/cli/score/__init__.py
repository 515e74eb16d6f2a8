"""`soma-eval score`: start with command.py."""
