"""Entry points that a person or `ray job submit` runs."""
