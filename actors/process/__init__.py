"""What every process of ours needs, whatever it does: logging, signals, a watchdog, garbage collection."""
