"""What the routes of batches and files do."""
