"""The three parts of `lora.attach`, in reading order: targets, plan, state."""
