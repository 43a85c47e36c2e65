"""Events as tables: Arrow columns of their fields, files of them, and lines of JSON."""
