"""Sockets: what the Unix sockets between processes of one machine have in common."""
