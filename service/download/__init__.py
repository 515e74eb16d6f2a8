"""From a URL to a verified file: start with downloader.py."""
