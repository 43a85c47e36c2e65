"""The command line. The only room that prints to a terminal; nothing imports it."""
