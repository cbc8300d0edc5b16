"""What states in 8 bits change in trainings."""
