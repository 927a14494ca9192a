"""What the api knows: folded from the log into a file of its own, and looked up there."""
