"""Health and start-up of every Tidemill process."""
