"""Evaluation: metrics, scores of whole recordings, and the report."""
