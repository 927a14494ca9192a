"""Access to Kafka without Faust."""
