"""What people and monitoring see of a gateway: the log, counters, tables."""
