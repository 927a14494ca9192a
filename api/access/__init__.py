"""Who may ask for what, how often, and the trail of it."""
