"""What a program holds: the runtime, a connection, a session, a replica, subscriptions, time travel."""
