"""Authentication, rate limits, and the audit trail."""
