"""Programs that a new user can read, run and copy; the tests run each of them."""
