"""A deterministic simulation: the real loops and clients over an injected clock, network and disk."""
