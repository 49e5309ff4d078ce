"""The data sets that ship with npgait."""
