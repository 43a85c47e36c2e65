"""The flights that left New York in 2013, sent through the whole runtime and counted again beside it.

Read in this order: `table` (what the bureau recorded), `domain` (the rules), `figures` (the read models), `feed`
(the table as commands), `oracle` (the same figures from the table alone), `verification`, `demo`.
"""
