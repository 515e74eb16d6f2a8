"""`soma-eval audit`: start with command.py."""
