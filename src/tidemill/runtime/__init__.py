"""What every process of Tidemill needs to run and to be watched."""
