"""What a user writes: messages, aggregates and projections, and the checks made while a class is defined."""
