"""The network's own gRPC service: start with servicer.py."""
