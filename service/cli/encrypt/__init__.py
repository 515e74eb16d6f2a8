"""`soma-eval encrypt`: start with command.py."""
