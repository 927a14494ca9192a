"""Makes calls for lines, judges the answers, writes result lines, and decides on retries (`retry.py`)."""
