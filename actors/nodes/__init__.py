"""What lies on a node of a cluster: its part of a store, and the actor that keeps it and reads its logs for others."""
