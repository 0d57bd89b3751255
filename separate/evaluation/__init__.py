"""Scores of a separation against its references, and the report of them."""
