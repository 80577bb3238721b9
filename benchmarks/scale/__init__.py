"""What an epoch costs at the papers' size, measured on parts that fit this machine."""
