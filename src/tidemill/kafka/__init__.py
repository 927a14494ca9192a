"""Everything that talks to Kafka, apart from Faust."""
