"""Settings: reads them and reports their faults."""
