"""The StratoVirt engine: its command line, its dialect of QMP, what can be plugged into its machines."""
