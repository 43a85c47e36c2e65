"""A read model: it applies the events of each partition in order, exactly once, and answers queries."""
