"""How a running system is observed: status, screen, metrics, and the logs of its actors."""
