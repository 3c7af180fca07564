"""What the numbers say, given data: forward passes, input norms, selections. Knows no method and no plan."""
