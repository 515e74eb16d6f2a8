"""What people see of the service in a browser: start with routes.py."""
