"""How many calls a server gets at one time."""
