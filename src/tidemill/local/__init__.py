"""`tidemill up`: starts, watches and stops everything on one machine."""
