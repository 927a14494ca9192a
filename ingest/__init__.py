"""The stage that checks input files and publishes their lines as requests."""
