"""Optional encryption of records, parts and large lines with a key per batch."""
