"""The command line of npgait."""
