"""`soma-eval watch`: start with command.py."""
