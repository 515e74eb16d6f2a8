"""The default pool: supervised worker processes of this machine. Start with process_pool.py."""
