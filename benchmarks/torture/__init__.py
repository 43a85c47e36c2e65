"""Torture: faults injected into what really runs, and the invariants checked after every scenario, as numbers."""
