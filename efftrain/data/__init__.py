"""Where a batch comes from."""
