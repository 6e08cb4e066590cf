"""The choices that LoRA leaves open: how an update begins, and what else is done with it."""
