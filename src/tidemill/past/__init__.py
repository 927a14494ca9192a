"""What the log still has: topics are read from where one wants to where they end, and nothing is left behind."""
