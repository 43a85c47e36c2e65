"""Effects: calls to the outside world, recorded before and after. What is known of a call, and when it may begin."""
