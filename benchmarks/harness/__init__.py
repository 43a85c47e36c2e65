"""How things are measured: cases, repetitions, statistics, the machine, the results. Start with `contract.py`."""
