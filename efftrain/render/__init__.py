"""How results look to people: the only place that formats."""
