"""The pool on the nodes of a Ray cluster. Start with cluster_pool.py; ray is imported by the connector alone."""
