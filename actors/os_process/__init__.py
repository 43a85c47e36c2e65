"""What every process of Rayfold's needs: logging, signals, a watchdog, garbage collection."""
