"""Whether code fits a store, and whether states are what a fold of the log gives. They change nothing."""
