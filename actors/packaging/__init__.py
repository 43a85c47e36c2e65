"""The application's classes and code on their way to an actor, and what Ray's directory holds of them."""
