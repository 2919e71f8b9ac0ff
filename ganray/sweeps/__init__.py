"""Many runs that differ in what is compared: which there are, and what they came to."""
