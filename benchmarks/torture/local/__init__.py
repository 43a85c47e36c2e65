"""Faults of processes, connections and load, of a system on one machine."""
