"""Backups of a store: taken while it is written to, continued where the last one ended, restored to any position."""
