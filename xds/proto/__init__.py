"""Messages of others' protocols that only the control server speaks."""
