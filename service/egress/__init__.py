"""What may be dialled, and the connections that hold to it."""
