"""The course: notebooks, their exercises, and the check of an answer."""
