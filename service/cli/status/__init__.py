"""`soma-eval status`: start with command.py."""
