"""`soma-eval screen`: many pieces of data with some models, against many targets."""
