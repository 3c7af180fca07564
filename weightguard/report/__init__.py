"""Renderings of a report or a verdict that was computed once. They decide nothing."""
