"""The doors (HTTP, gRPC, command line) and the core behind them. Imports no torch."""
