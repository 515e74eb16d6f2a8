"""The two JSON files that `screen` reads."""

import json
from pathlib import Path
from typing import Any

import base58

from tests.recipe import TEST_KEY

KEY = base58.b58encode(TEST_KEY).decode()


def write_json(path: Path, content: Any) -> str:
    """Write a file of models or targets; returns its path."""
    path.write_text(json.dumps(content))
    return str(path)
