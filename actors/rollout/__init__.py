"""How a running system gets new code: what it would change, whether it fits, and the steps in their order."""
