"""Commands of an operator, which work on the log and the store themselves: dead letters, rebuild, doctor."""
