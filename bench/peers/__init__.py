"""The contestants: one module for each program."""
