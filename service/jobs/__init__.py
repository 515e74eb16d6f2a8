"""Requests that go on while their callers ask for progress."""
