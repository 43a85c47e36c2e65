"""The model: what a system of other sizes would do, simulated from the measured CPU time of each step."""
