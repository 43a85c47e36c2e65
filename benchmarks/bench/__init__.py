"""`rayfold bench`: suites are run, set against one another, and shown as a page."""
