"""What several papers do, as parts that a module holds."""
