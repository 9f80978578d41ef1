"""What is on disk: run folders, files, secrets, and which classes a configuration may name."""
