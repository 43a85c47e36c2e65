"""Processes: what spans aggregates and time. An instance is a stream; its inputs are events, timers and outcomes."""
