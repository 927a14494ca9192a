"""The read model of the api: the log folded into a SQLite file."""
