"""Faults of disks, files and bytes: the log and the store, without Ray."""
