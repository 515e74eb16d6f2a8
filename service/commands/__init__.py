"""What a trainer does before a commit: `score`, `encrypt` and `check`, each from its flags to its exit code."""
