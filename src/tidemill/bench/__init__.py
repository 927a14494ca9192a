"""How fast it is: `tidemill bench`. It measures the product as it is run, against a backend that costs nothing."""
