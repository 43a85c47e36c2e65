"""The relay: a socket at which programs without Ray call the actors of a system, in whatever process that has it."""
