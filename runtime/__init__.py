"""What runs inside an actor: domain kernel, write loop, read model and log, as plain Python without Ray."""
