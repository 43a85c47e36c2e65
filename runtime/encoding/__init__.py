"""Values as bytes and back: messages, states, envelopes, outcomes and errors."""
