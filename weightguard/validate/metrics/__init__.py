"""Metrics: one value per row, from which a measurement and, against a reference, a paired difference are made."""
