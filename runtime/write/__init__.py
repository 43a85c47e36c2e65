"""The write loop: a batch of commands in, one outcome for each out, with everything acknowledged on disk."""
