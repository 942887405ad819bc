"""What a prompt is, and how data sets and generated questions become prompts."""
