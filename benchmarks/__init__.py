"""Claims, chaos, speed, mutants, report: what is said of the methods, and how it is checked."""
