"""What all docks share: jobs, their sentences, and an end."""
