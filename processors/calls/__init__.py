"""A line becomes an HTTP call; a reply becomes a result line."""
