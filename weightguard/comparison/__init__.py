"""Two checkpoints side by side: what moved, where, how, and what kind of change that is. Knows no method and no model."""
