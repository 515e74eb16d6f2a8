"""The command line: start with main.py, which declares every command."""
