"""The events of a store for programs outside: followed from a position, filtered, acknowledged."""
