"""Whether a process is well: what is seen of it, what that means, and who is told."""
