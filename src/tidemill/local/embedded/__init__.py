"""The embedded broker: a real Apache Kafka of one node, from its jars."""
