"""Stages of the data plane, memory to memory."""
