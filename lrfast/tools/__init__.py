"""Tools around training: timing, diagnosis, the demo and the command line."""
