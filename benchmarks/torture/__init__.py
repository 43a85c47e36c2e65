"""Torture: faults injected into what really runs, and the invariants looked at after every scenario, as numbers."""
