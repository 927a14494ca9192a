"""`tidemill run`: files become batches, and batches become one output."""
