"""Implementation of the jobs, which only parse their options and call these functions."""
