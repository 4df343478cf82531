"""The synthetic chest world."""
