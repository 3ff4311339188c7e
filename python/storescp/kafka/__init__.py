"""What the producer and the consumer of Kafka share: connection, diagnosis, log lines."""
