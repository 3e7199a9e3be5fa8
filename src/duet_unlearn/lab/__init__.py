"""The embedded lab: a fictional world, a benchmark on it, and two small models that know it and do not."""
