"""The suites: each module has `cases(options)`, what it measures and at which settings. See `harness/contract.py`."""
