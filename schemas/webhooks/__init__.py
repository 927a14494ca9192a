"""Webhooks: endpoints, events and deliveries, and the addresses that they may reach. No I/O."""
