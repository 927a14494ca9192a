"""Everything on one machine: what `tidemill up` starts, watches and stops."""
