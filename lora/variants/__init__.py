"""Initial values of A and B (inits), DoRA (dora), and bases stored in few bits (narrow)."""
