"""The stage that calls webhooks: the end of a batch becomes an event, and the event one delivery an endpoint."""
