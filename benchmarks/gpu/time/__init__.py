"""Where the time goes: batches, products, loading, and what the card waits for."""
