"""Settings: reads them and reports what is wrong with them."""
