"""The APIs (HTTP, gRPC), the command line and the core behind them. Imports no torch."""
