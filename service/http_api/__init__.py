"""The HTTP API: start with app.py."""
