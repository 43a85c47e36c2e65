"""What publishes events to other systems: as CloudEvents, to webhooks and brokers, each confirmed before it counts."""
