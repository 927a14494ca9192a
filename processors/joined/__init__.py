"""Calls that ask for several lines at once, as an array of inputs (`inputs_per_call` of a model)."""
