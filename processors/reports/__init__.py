"""Reports of what this process measures of its servers and models."""
