"""What the comparison with PyTorch needs: its side of each op, and rows with random shapes."""
