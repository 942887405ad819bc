"""What the engine, the judges and the teachers say."""
