"""The objects that the API shows, and what they consist of."""
