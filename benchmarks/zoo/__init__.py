"""Training of the small models that come with Tenfold: `make zoo`."""
