"""Claims, chaos, speed, mutants and the report: what is said of the methods, and how it is checked."""
