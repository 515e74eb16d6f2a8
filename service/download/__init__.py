"""From a URL to a verified file. Start with downloader.py."""
