"""Measures models by running them. Imports no method, no plan and no rewrite: a repair cannot grade itself."""
