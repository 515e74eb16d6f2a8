"""The pool on the nodes of a Ray cluster. Start with cluster_pool.py; the connector alone imports ray."""
