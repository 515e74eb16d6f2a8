"""`soma-eval publish`: start with command.py."""
