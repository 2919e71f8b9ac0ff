"""What each job does. The jobs only parse their options and call these functions."""
