"""Object stores and the space they have."""
