"""The log of a partition: the only folder that imports lmdb. Start with `contract.py`."""
