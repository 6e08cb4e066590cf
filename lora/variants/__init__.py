"""How an update begins (inits), what form it has (dora), how the base is stored (narrow)."""
