"""What clients send."""

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
"""As a browser."""
AS_JOB = {"Prefer": "respond-async", "Cache-Control": "no-cache"}
"""For a job that computes, whatever was computed before."""
