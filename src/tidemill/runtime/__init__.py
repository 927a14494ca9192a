"""Health, logging and start-up of every Tidemill process."""
