"""`soma-eval cache`: start with command.py."""
