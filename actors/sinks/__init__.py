"""The process that publishes the events of sinks, for a system on one machine or on a cluster."""
