"""What a model costs, before it runs."""
