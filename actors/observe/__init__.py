"""How a running system is looked at: status, screen, metrics, and the logs of its actors."""
