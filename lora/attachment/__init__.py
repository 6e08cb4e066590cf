"""The parts of attaching adapters to a model, in reading order: targets, plan, state."""
