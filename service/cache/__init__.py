"""Files on disk as published, each named by its checksum: start with blob_cache.py."""
