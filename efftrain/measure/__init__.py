"""What a run costs, read off while it runs."""
