"""Faults of nodes, programs and networks, of a deployed application on several nodes."""
