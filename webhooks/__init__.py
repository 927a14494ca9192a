"""The stage that calls webhooks: the end of a batch becomes an event, with one delivery for each endpoint."""
