"""`tidemill bench`: measures a complete installation against a mock backend."""
