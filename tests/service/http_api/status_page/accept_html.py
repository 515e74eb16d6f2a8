"""What a browser sends as `Accept`."""

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
