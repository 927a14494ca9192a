"""What lies on the log and in parts is sealed with a key of its batch, where the operator wants it so."""
